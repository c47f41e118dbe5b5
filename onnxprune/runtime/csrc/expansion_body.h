// Kernels of pointwise convolutions that are computed channel by channel; a part of
// kernels_body.h.

// Vectors of pixels whose sums stay in registers.
constexpr int kExpandVectors = 8;

// N vectors of pixels; the last one begins at `last`, which may lie within the one before it.
template <int N>
inline void expand_vectors(const ExpansionWork& work, const Target& target, size_t at,
                           size_t last) {
  Row<N> sums;
  const Vec start = V::broadcast(work.bias);
  sums.each([&](Vec& sum, int) { sum = start; });
  const float* const x = work.x + at;
  for (size_t k = 0; k < work.nonzeros; ++k) {
    const float* const from = x + ptrdiff_t(work.columns[k]) * work.channel_stride;
    const Vec weight = V::broadcast(work.values[k]);
    sums.each([&](Vec& sum, int i) {
      sum = V::fma(V::load(from + (i < N - 1 ? size_t(i) * kWidth : last)), weight, sum);
    });
  }
  const Vec low = V::broadcast(target.low), high = V::broadcast(target.high);
  if (target.activation == Activation::kHardSwish) {
    sums.each([&](Vec& sum, int) { sum = activated(Activation::kHardSwish, sum, low, high); });
  }
  float* const y = target.y + at;
  sums.each([&](Vec& sum, int i) {
    V::store(y + (i < N - 1 ? size_t(i) * kWidth : last), V::min(high, V::max(low, sum)));
  });
}

struct ExpandRest {
  const ExpansionWork& work;
  const Target& target;
  size_t at, last;

  template <int N>
  void run() const {
    expand_vectors<N>(work, target, at, last);
  }
};

// Fewer pixels than a vector has.
inline void expand_few(const ExpansionWork& work, const Target& target) {
  const auto bits = V::bits_of((uint64_t{1} << work.count) - 1);
  Vec sum = V::broadcast(work.bias);
  for (size_t k = 0; k < work.nonzeros; ++k) {
    const float* const from = work.x + ptrdiff_t(work.columns[k]) * work.channel_stride;
    sum = V::fma(V::load_bits(from, bits), V::broadcast(work.values[k]), sum);
  }
  const Vec low = V::broadcast(target.low), high = V::broadcast(target.high);
  if (target.activation == Activation::kHardSwish) {
    sum = activated(Activation::kHardSwish, sum, low, high);
  }
  V::store(target.y, V::min(high, V::max(low, sum)));
}

ONNXPRUNE_FLATTEN void expand(const ExpansionWork& work, const Target& target) {
  constexpr size_t kTogether = size_t(kExpandVectors) * kWidth;
  if (work.count < size_t(kWidth)) {
    expand_few(work, target);
  } else {
    size_t at = 0;
    for (; at + kTogether <= work.count; at += kTogether) {
      expand_vectors<kExpandVectors>(work, target, at, kTogether - kWidth);
    }
    const size_t rest = work.count - at;
    if (rest > 0) {
      const int vectors = vectors_of(int(rest));
      // A vector that would end beyond the pixels begins before them; only of the first it is not
      // sure that there are any.
      if (vectors == 1) {
        expand_vectors<1>(work, target, work.count - kWidth, 0);
      } else {
        with_vectors<kExpandVectors>(vectors, ExpandRest{work, target, at, rest - kWidth});
      }
    }
  }
  if (target.activation > Activation::kHardSwish) {
    activate(target.activation, target.alpha, target.beta, target.y, work.count);
  }
}
