#include "cpu/kernels.hpp"

namespace mmebm::cpu::MMEBM_ISA {

void draw(const DrawCall&, int);
void energy(const EnergyCall&, int);
void energy_backward(const EnergyBackwardCall&, int);
void langevin(const ChainCall&, int);
void mala(const ChainCall&, int);
void langevin_update(const UpdateCall&, int);
void product(const ProductCall&, int);
void product_backward(const ProductBackwardCall&, int);
void subsets(const SubsetsCall&, int);
void subsets_backward(const SubsetsBackwardCall&, int);
void mixture(const MixtureCall&, int);
void mixture_backward(const MixtureBackwardCall&, int);
double fma_rate(double, int);
double activation_rate(Activation, double);
double normal_rate(double);

extern const Kernels kernels{&draw,    &energy,           &energy_backward, &langevin,         &mala,    &langevin_update,
                             &product, &product_backward, &subsets,         &subsets_backward, &mixture, &mixture_backward,
                             &fma_rate, &activation_rate, &normal_rate};

}  // namespace mmebm::cpu::MMEBM_ISA
