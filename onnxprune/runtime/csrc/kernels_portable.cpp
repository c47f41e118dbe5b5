// Plain C++ for processors that none of the other files serves.
#include <math.h>
#include <string.h>

#include "kernels.h"

// It need not be the fastest, and takes the longest to compile.
#undef ONNXPRUNE_FLATTEN
#define ONNXPRUNE_FLATTEN

namespace onnxprune {
namespace {

struct V {
  struct Vec {
    float lane[4];
  };
  static constexpr const char* kName = "portable";
  static constexpr int kWidth = 4;
  static constexpr int kGroupRows = 1;
  static constexpr int kBlockVectors = 2;
  static constexpr bool kPixelsStay = false;
  static constexpr int kSquare = 4;

  template <class F>
  static Vec map(F f) {
    Vec v;
    for (int i = 0; i < 4; ++i) v.lane[i] = f(i);
    return v;
  }
  static Vec load(const float* p) {
    return map([&](int i) { return p[i]; });
  }
  static Vec loaded(const float* p) { return load(p); }
  static void store(float* p, Vec v) { memcpy(p, v.lane, sizeof v.lane); }
  using Bits = uint64_t;
  static Bits bits_of(uint64_t bits) { return bits; }
  static Vec load_bits(const float* p, Bits bits) {
    return map([&](int i) { return bits >> i & 1 ? p[i] : 0.0f; });
  }
  // c + a times the floats at p that have a bit, others as zero.
  static Vec fma_bits(const float* p, Bits bits, Vec a, Vec c) {
    return fma(load_bits(p, bits), a, c);
  }
  static void store_head(float* p, Vec v, int count) {
    for (int i = 0; i < count; ++i) p[i] = v.lane[i];
  }
  static Vec take(Vec x, const float* p, const Window& w) {
    return map([&](int i) { return w.lanes >> i & 1 ? p[w.index[i]] : x.lane[i]; });
  }
  static Vec even(Vec low, Vec high) {
    return map([&](int i) { return i < 2 ? low.lane[2 * i] : high.lane[2 * i - 4]; });
  }
  static Vec odd(Vec low, Vec high) {
    return map([&](int i) { return i < 2 ? low.lane[2 * i + 1] : high.lane[2 * i - 3]; });
  }
  static Vec gather(const float* p, const uint16_t* index) {
    return map([&](int i) { return p[index[i]]; });
  }
  static float sum(Vec x) { return x.lane[0] + x.lane[1] + x.lane[2] + x.lane[3]; }
  static void transpose(const float* from, ptrdiff_t pitch, float* to, ptrdiff_t to_pitch) {
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) to[j * to_pitch + i] = from[i * pitch + j];
    }
  }
  static Vec zero() { return broadcast(0.0f); }
  static Vec broadcast(float x) {
    return map([&](int) { return x; });
  }
  static Vec add(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Vec mul(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Vec div(Vec a, Vec b) {
    return map([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static Vec fma(Vec a, Vec b, Vec c) {
    return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Vec min(Vec bound, Vec x) {
    return map([&](int i) { return bound.lane[i] < x.lane[i] ? bound.lane[i] : x.lane[i]; });
  }
  static Vec max(Vec bound, Vec x) {
    return map([&](int i) { return bound.lane[i] > x.lane[i] ? bound.lane[i] : x.lane[i]; });
  }
  static Vec abs(Vec x) {
    return map([&](int i) { return fabsf(x.lane[i]); });
  }
  static Vec copy_sign(Vec size, Vec sign) {
    return map([&](int i) { return copysignf(size.lane[i], sign.lane[i]); });
  }
  static Vec select_less(Vec a, Vec b, Vec then, Vec otherwise) {
    return map([&](int i) { return a.lane[i] < b.lane[i] ? then.lane[i] : otherwise.lane[i]; });
  }
  static Vec round(Vec x) {
    return map([&](int i) { return nearbyintf(x.lane[i]); });
  }
  static Vec scale_by_power_of_two(Vec x, Vec n) {
    return map([&](int i) { return ldexpf(x.lane[i], static_cast<int>(n.lane[i])); });
  }
};

#include "kernels_body.h"

}  // namespace

const KernelSet* portable_kernels() { return &kSet; }

}  // namespace onnxprune
