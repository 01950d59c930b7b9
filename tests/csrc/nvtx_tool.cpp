// A tool that NVTX loads in place of a profiler (NVTX_INJECTION64_PATH): writes a line for each range to MMEBM_RANGES.
#include <nvtx3/nvToolsExt.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

FILE* out = nullptr;

const char* text(const nvtxEventAttributes_t* attributes) {
  if (attributes->messageType == NVTX_MESSAGE_TYPE_REGISTERED) {
    return reinterpret_cast<const char*>(attributes->message.registered);
  }
  return attributes->messageType == NVTX_MESSAGE_TYPE_ASCII ? attributes->message.ascii : "?";
}

nvtxDomainHandle_t create(const char* name) { return reinterpret_cast<nvtxDomainHandle_t>(new std::string(name)); }

nvtxStringHandle_t register_string(nvtxDomainHandle_t, const char* string) {
  return reinterpret_cast<nvtxStringHandle_t>(const_cast<char*>((new std::string(string))->c_str()));
}

int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes) {
  std::fprintf(out, "push %s@%s\n", reinterpret_cast<std::string*>(domain)->c_str(), text(attributes));
  std::fflush(out);
  return 0;
}

int pop(nvtxDomainHandle_t domain) {
  std::fprintf(out, "pop %s\n", reinterpret_cast<std::string*>(domain)->c_str());
  std::fflush(out);
  return 0;
}

}  // namespace

extern "C" int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const auto* callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  const char* path = std::getenv("MMEBM_RANGES");
  if (!callbacks || !path || !(out = std::fopen(path, "w")) ||
      !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size)) {
    return 0;
  }
  *table[NVTX_CBID_CORE2_DomainCreateA] = reinterpret_cast<NvtxFunctionPointer>(&create);
  *table[NVTX_CBID_CORE2_DomainRegisterStringA] = reinterpret_cast<NvtxFunctionPointer>(&register_string);
  *table[NVTX_CBID_CORE2_DomainRangePushEx] = reinterpret_cast<NvtxFunctionPointer>(&push);
  *table[NVTX_CBID_CORE2_DomainRangePop] = reinterpret_cast<NvtxFunctionPointer>(&pop);
  return 1;
}
