// Bugs planted in the kernels, to see whether the sampler's proofs (tests/statistics) find them; docs/proofs.md has the
// outcome. MMEBM_MUTANT(name, wrong, right) is `right`. Only a build with MMEBM_MUTANTS, which nobody installs, knows
// the enum, and there it is `wrong` while that bug is chosen.
#pragma once

#if defined(MMEBM_MUTANTS)

#define MMEBM_MUTANT_LIST(X)                                                                             \
  X(1, noise_over_root_two, "b is divided by sqrt(2)")                                                   \
  X(2, noise_one_percent, "b is 1% too large")                                                           \
  X(3, drift_doubled, "a is doubled: the 1/2 of s^2 / 2 is missing")                                     \
  X(4, drift_three_percent, "a is 3% too large")                                                         \
  X(5, no_reference, "the reference's pull is missing")                                                  \
  X(6, reference_sign, "the reference pushes instead of pulling")                                        \
  X(7, leaky_slope, "leaky_relu has slope 0.01, whatever is given")                                      \
  X(8, transposed_weights, "the weights of a square layer are transposed")                               \
  X(9, no_hidden_bias, "the hidden layers' biases are dropped")                                          \
  X(10, noise_of_one_step, "every step of a chain has the noise of its first")                           \
  X(11, noise_of_one_tile, "every tile of chains has the noise of the first")                            \
  X(12, offset_ignored, "a chain's noise ignores the offset: the next call repeats it")                  \
  X(13, seed_plus_step, "a chain's step k has the noise of (seed + k, step 0)")                          \
  X(14, second_pair_copied, "the second pair of normals of a call is the first again")                   \
  X(15, uniform_from_zero, "u is (x >> 9) 2^-23, and so can be 0")                                       \
  X(16, nine_rounds, "Philox has 9 rounds")                                                              \
  X(17, stale_gradient, "mala keeps the proposal's gradient after a rejection")                          \
  X(18, stale_energy, "mala keeps the proposal's energy after a rejection")                              \
  X(19, accept_sign, "mala's log alpha has the wrong sign")                                              \
  X(20, no_proposal_ratio, "mala's log alpha lacks the ratio of proposal densities")                     \
  X(21, accept_purpose, "mala's accept word is one of the chain noise's")                                \
  X(22, nan_accepts, "mala accepts where log alpha is NaN")                                              \
  X(23, clamp_before_noise, "the state is clamped before the noise is added")                            \
  X(24, one_step_short, "a chain stops after K - 1 steps")                                               \
  X(25, sign_of_zero, "the Laplace reference pulls at 0 as if it were positive")                         \
  X(26, tempered_reference, "t multiplies the reference too")                                            \
  X(27, no_bound_derivative, "the gradient lacks the bound's derivative")                                \
  X(28, clip_after_t, "the clip caps t grad E instead of grad E")

namespace mmebm {

#define MMEBM_MUTANT_ENTRY(number, name, sentence) name = number,
enum class Mutant : int { none = 0, MMEBM_MUTANT_LIST(MMEBM_MUTANT_ENTRY) };
#undef MMEBM_MUTANT_ENTRY

inline Mutant chosen_mutant = Mutant::none;

}  // namespace mmebm

#define MMEBM_MUTANT(name, wrong, right) (::mmebm::chosen_mutant == ::mmebm::Mutant::name ? (wrong) : (right))

#else

#define MMEBM_MUTANT(name, wrong, right) (right)

#endif
