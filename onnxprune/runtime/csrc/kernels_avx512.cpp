#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prfchw"))), \
                             apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prfchw")
#endif
#include <immintrin.h>

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes its own _mm512_undefined_ps for a mistake.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace onnxprune {
namespace {

#include "transpose_avx.h"

struct V {
  using Vec = __m512;
  static constexpr const char* kName = "avx512";
  static constexpr int kWidth = 16;
  static constexpr int kGroupRows = 4;
  static constexpr int kBlockVectors = 4;
  static constexpr bool kPixelsStay = false;
  static constexpr int kSquare = 8;

  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  // Kept in a register: GCC would load it again for every use.
  static Vec loaded(const float* p) {
    Vec x = load(p);
#if defined(__GNUC__)
    asm("" : "+v"(x));
#endif
    return x;
  }
  static void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
  using Bits = __mmask16;
  static Bits bits_of(uint64_t bits) { return static_cast<__mmask16>(bits); }
  static Vec load_bits(const float* p, Bits bits) { return _mm512_maskz_loadu_ps(bits, p); }
  // c + a times the floats at p that have a bit, others as zero.
  static Vec fma_bits(const float* p, Bits bits, Vec a, Vec c) {
    return _mm512_mask3_fmadd_ps(_mm512_maskz_loadu_ps(bits, p), a, c, bits);
  }
  static void store_head(float* p, Vec v, int count) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), v);
  }
  static Vec take(Vec x, const float* p, const Window& w) {
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(w.needed), p);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(w.needed >> 16), p + 16);
    const __m512 taken = _mm512_permutex2var_ps(low, _mm512_load_si512(w.index), high);
    return _mm512_mask_blend_ps(static_cast<__mmask16>(w.lanes), x, taken);
  }
  // The floats at even, and at odd places.
  static Vec even(Vec low, Vec high) {
    const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return _mm512_permutex2var_ps(low, index, high);
  }
  static Vec odd(Vec low, Vec high) {
    const __m512i index = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(low, index, high);
  }
  static Vec gather(const float* p, const uint16_t* index) {
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
    return _mm512_i32gather_ps(_mm512_cvtepu16_epi32(narrow), p, 4);
  }
  static float sum(Vec x) { return _mm512_reduce_add_ps(x); }
  static void transpose(const float* from, ptrdiff_t pitch, float* to, ptrdiff_t to_pitch) {
    transpose_8x8(from, pitch, to, to_pitch);
  }
  static Vec zero() { return _mm512_setzero_ps(); }
  static Vec broadcast(float x) { return _mm512_set1_ps(x); }
  // Four floats again and again, and one of them in all places.
  static Vec repeat_four(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  template <int I>
  static Vec spread(Vec fours) { return _mm512_permute_ps(fours, I * 0x55); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  static Vec min(Vec bound, Vec x) { return _mm512_min_ps(bound, x); }
  static Vec max(Vec bound, Vec x) { return _mm512_max_ps(bound, x); }
  static Vec abs(Vec x) { return _mm512_abs_ps(x); }
  static Vec copy_sign(Vec size, Vec sign) {
    return _mm512_or_ps(size, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
  }
  static Vec select_less(Vec a, Vec b, Vec then, Vec otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
  }
  static Vec round(Vec x) { return _mm512_roundscale_ps(x, 0); }
  static Vec scale_by_power_of_two(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
};

#include "kernels_body.h"

}  // namespace

const KernelSet* avx512_kernels() { return &kSet; }

}  // namespace onnxprune

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

#else

namespace onnxprune {
const KernelSet* avx512_kernels() { return nullptr; }
}  // namespace onnxprune

#endif
