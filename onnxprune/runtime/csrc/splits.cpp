#include "splits.h"

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace onnxprune {

size_t processors() {
  static const size_t count = [] {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return size_t(std::max(1, CPU_COUNT(&set)));
#endif
    return size_t(std::max(1u, std::thread::hardware_concurrency()));
  }();
  return count;
}

size_t row_splits(const PackedWeights& weights, size_t tiles, int pixels, double pack_cycles) {
  const size_t available = processors();
  if (available == 1 || tiles == 0) return 1;
  // Measured on one core: about 0.75 cycles for a non-zero and vector of 16 pixels.
  const double vectors = double(pixels + 15) / 16;
  const double compute = double(weights.nonzeros()) * vectors * 0.75;
  const double pack = double(weights.slab_rows()) * vectors * pack_cycles;
  const size_t wanted = (2 * available + tiles - 1) / tiles;
  const double bearable = pack > 0 ? 1 + 0.1 * compute / pack : double(wanted);
  const size_t limit = std::min(weights.chunk_count(), wanted);
  return std::max<size_t>(1, std::min(limit, size_t(std::min(bearable, 1e6))));
}

}  // namespace onnxprune
