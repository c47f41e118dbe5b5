#include "kernels.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,prfchw"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,prfchw")
#endif
#include <immintrin.h>

namespace onnxprune {
namespace {

#include "transpose_avx.h"

struct V {
  using Vec = __m256;
  static constexpr const char* kName = "avx2";
  static constexpr int kWidth = 8;
  static constexpr int kGroupRows = 1;
  static constexpr int kBlockVectors = 3;
  static constexpr bool kPixelsStay = true;
  static constexpr int kSquare = 8;

  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  // Kept in a register: GCC would load it again for every use.
  static Vec loaded(const float* p) {
    Vec x = load(p);
#if defined(__GNUC__)
    asm("" : "+x"(x));
#endif
    return x;
  }
  static void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
  using Bits = __m256i;
  // Bit i becomes the sign of lane i, which is all that loads and blends look at.
  static Bits bits_of(uint64_t bits) {
    const __m256i signs = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
    return _mm256_sllv_epi32(_mm256_set1_epi32(static_cast<int>(bits)), signs);
  }
  static Vec load_bits(const float* p, Bits bits) { return _mm256_maskload_ps(p, bits); }
  // c + a times the floats at p that have a bit, others as zero.
  static Vec fma_bits(const float* p, Bits bits, Vec a, Vec c) {
    return fma(load_bits(p, bits), a, c);
  }
  static void store_head(float* p, Vec v, int count) {
    if (count >= 8) {
      store(p, v);
      return;
    }
    // Not by a mask: such stores take more than ten cycles on processors of AMD.
    __m128 rest = _mm256_castps256_ps128(v);
    if (count & 4) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (count & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if (count & 1) _mm_store_ss(p, rest);
  }
  static Vec take(Vec x, const float* p, const Window& w) {
    const __m256i index = _mm256_load_si256(reinterpret_cast<const __m256i*>(w.index));
    const __m256 low = _mm256_maskload_ps(p, bits_of(w.needed));
    const __m256 high = _mm256_maskload_ps(p + 8, bits_of(w.needed >> 8));
    const __m256i beyond = _mm256_cmpgt_epi32(index, _mm256_set1_epi32(7));
    const __m256 taken = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index),
                                          _mm256_permutevar8x32_ps(high, index),
                                          _mm256_castsi256_ps(beyond));
    return _mm256_blendv_ps(x, taken, _mm256_castsi256_ps(bits_of(w.lanes)));
  }
  static Vec even(Vec low, Vec high) {
    const __m256 mixed = _mm256_shuffle_ps(low, high, 0x88);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xD8));
  }
  static Vec odd(Vec low, Vec high) {
    const __m256 mixed = _mm256_shuffle_ps(low, high, 0xDD);
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xD8));
  }
  static Vec gather(const float* p, const uint16_t* index) {
    // Instructions that gather take many times as long on processors of AMD.
    return _mm256_setr_ps(p[index[0]], p[index[1]], p[index[2]], p[index[3]], p[index[4]],
                          p[index[5]], p[index[6]], p[index[7]]);
  }
  static float sum(Vec x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
  }
  static void transpose(const float* from, ptrdiff_t pitch, float* to, ptrdiff_t to_pitch) {
    transpose_8x8(from, pitch, to, to_pitch);
  }
  static Vec zero() { return _mm256_setzero_ps(); }
  static Vec broadcast(float x) { return _mm256_set1_ps(x); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
  static Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  static Vec min(Vec bound, Vec x) { return _mm256_min_ps(bound, x); }
  static Vec max(Vec bound, Vec x) { return _mm256_max_ps(bound, x); }
  static Vec abs(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  static Vec copy_sign(Vec size, Vec sign) {
    return _mm256_or_ps(size, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
  }
  static Vec select_less(Vec a, Vec b, Vec then, Vec otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
  }
  static Vec round(Vec x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static Vec scale_by_power_of_two(Vec x, Vec n) {
    const __m256i power = _mm256_slli_epi32(
        _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(x, _mm256_castsi256_ps(power));
  }
};

#include "kernels_body.h"

}  // namespace

const KernelSet* avx2_kernels() { return &kSet; }

}  // namespace onnxprune

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

#else

namespace onnxprune {
const KernelSet* avx2_kernels() { return nullptr; }
}  // namespace onnxprune

#endif
