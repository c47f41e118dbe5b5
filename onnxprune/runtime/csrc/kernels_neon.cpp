#include "kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>

namespace onnxprune {
namespace {

struct V {
  using Vec = float32x4_t;
  static constexpr const char* kName = "neon";
  static constexpr int kWidth = 4;
  static constexpr int kGroupRows = 1;
  static constexpr int kBlockVectors = 4;
  static constexpr bool kPixelsStay = false;
  static constexpr int kSquare = 4;

  static Vec load(const float* p) { return vld1q_f32(p); }
  static Vec loaded(const float* p) { return load(p); }
  static void store(float* p, Vec v) { vst1q_f32(p, v); }
  using Bits = uint64_t;
  static Bits bits_of(uint64_t bits) { return bits; }
  static Vec load_bits(const float* p, Bits bits) {
    float lanes[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) {
      if (bits >> i & 1) lanes[i] = p[i];
    }
    return vld1q_f32(lanes);
  }
  // c + a times the floats at p that have a bit, others as zero.
  static Vec fma_bits(const float* p, Bits bits, Vec a, Vec c) {
    return fma(load_bits(p, bits), a, c);
  }
  static void store_head(float* p, Vec v, int count) {
    float lanes[4];
    vst1q_f32(lanes, v);
    for (int i = 0; i < count; ++i) p[i] = lanes[i];
  }
  static Vec take(Vec x, const float* p, const Window& w) {
    float lanes[4];
    vst1q_f32(lanes, x);
    for (int i = 0; i < 4; ++i) {
      if (w.lanes >> i & 1) lanes[i] = p[w.index[i]];
    }
    return vld1q_f32(lanes);
  }
  static Vec even(Vec low, Vec high) { return vuzp1q_f32(low, high); }
  static Vec odd(Vec low, Vec high) { return vuzp2q_f32(low, high); }
  static Vec gather(const float* p, const uint16_t* index) {
    const float lanes[4] = {p[index[0]], p[index[1]], p[index[2]], p[index[3]]};
    return vld1q_f32(lanes);
  }
  static float sum(Vec x) { return vaddvq_f32(x); }
  static void transpose(const float* from, ptrdiff_t pitch, float* to, ptrdiff_t to_pitch) {
    const float32x4x2_t a = vtrnq_f32(vld1q_f32(from), vld1q_f32(from + pitch));
    const float32x4x2_t b = vtrnq_f32(vld1q_f32(from + 2 * pitch), vld1q_f32(from + 3 * pitch));
    vst1q_f32(to, vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0])));
    vst1q_f32(to + to_pitch, vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1])));
    vst1q_f32(to + 2 * to_pitch, vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0])));
    vst1q_f32(to + 3 * to_pitch, vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1])));
  }
  static Vec zero() { return vdupq_n_f32(0.0f); }
  static Vec broadcast(float x) { return vdupq_n_f32(x); }
  static Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
  static Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec div(Vec a, Vec b) { return vdivq_f32(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
  static Vec min(Vec bound, Vec x) { return vminq_f32(bound, x); }
  static Vec max(Vec bound, Vec x) { return vmaxq_f32(bound, x); }
  static Vec abs(Vec x) { return vabsq_f32(x); }
  static Vec copy_sign(Vec size, Vec sign) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), sign, size);
  }
  static Vec select_less(Vec a, Vec b, Vec then, Vec otherwise) {
    return vbslq_f32(vcltq_f32(a, b), then, otherwise);
  }
  static Vec round(Vec x) { return vrndnq_f32(x); }
  static Vec scale_by_power_of_two(Vec x, Vec n) {
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return vmulq_f32(x, vreinterpretq_f32_s32(power));
  }
};

#if defined(__GNUC__)
// With rows of more than ten vectors GCC leaves calls at the end of a row, for which it keeps sums
// in memory all along.
#define inline inline __attribute__((always_inline))
#endif
#include "kernels_body.h"
#undef inline

}  // namespace

const KernelSet* neon_kernels() { return &kSet; }

}  // namespace onnxprune

#else

namespace onnxprune {
const KernelSet* neon_kernels() { return nullptr; }
}  // namespace onnxprune

#endif
