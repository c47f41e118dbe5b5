#include <cstdlib>
#include <cstring>

#include "kernels.h"

#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#include <immintrin.h>
#endif

namespace onnxprune {
namespace {

struct Instructions {
  bool avx2 = false;
  bool avx512 = false;
};

Instructions instructions() {
  Instructions found;
#if defined(__x86_64__)
  // These builtins also ask whether the operating system saves the registers.
  __builtin_cpu_init();
  found.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  found.avx512 = found.avx2 && __builtin_cpu_supports("avx512f") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl");
#elif defined(_MSC_VER) && defined(_M_X64)
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const bool saved = leaf1[2] & 1 << 27;
  const unsigned long long state = saved ? _xgetbv(0) : 0;
  found.avx2 = (state & 6) == 6 && (leaf1[2] & 1 << 12) && (leaf7[1] & 1 << 5);
  const int needed = 1 << 16 | 1 << 17 | 1 << 30 | static_cast<int>(1u << 31);
  found.avx512 = found.avx2 && (state & 0xE6) == 0xE6 && (leaf7[1] & needed) == needed;
#endif
  return found;
}

const KernelSet* usable(const char* name) {
  const Instructions found = instructions();
  const KernelSet* sets[] = {
      found.avx512 ? avx512_kernels() : nullptr,
      found.avx2 ? avx2_kernels() : nullptr,
      neon_kernels(),
      portable_kernels(),
  };
  const KernelSet* best = nullptr;
  for (const KernelSet* set : sets) {
    if (!set) continue;
    if (!best) best = set;
    if (name && std::strcmp(name, set->name) == 0) return set;
  }
  return best;
}

}  // namespace

const KernelSet& kernels() {
  static const KernelSet* const chosen = usable(std::getenv("ONNXPRUNE_KERNELS"));
  return *chosen;
}

}  // namespace onnxprune
