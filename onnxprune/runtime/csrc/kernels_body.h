// The kernels, written once over a vector type. Included by one file for each instruction set,
// inside a namespace of its own, after a struct V of the instructions. V::min and V::max return
// their second argument where that is NaN, so that bounds come first and NaN passes through.
// No inline function of the standard library may be used here: the linker could keep this file's
// copy of it for processors that lack the instructions.

using Vec = V::Vec;
constexpr int kWidth = V::kWidth;
constexpr int kVectors = kMaxTile / kWidth;

inline int vectors_of(int count) { return (count + kWidth - 1) / kWidth; }

inline Vec exp_of(Vec x) {
  // Cephes' expf: range reduction by ln 2 in two parts, then a polynomial of degree 5.
  x = V::min(V::broadcast(88.0f), x);
  x = V::max(V::broadcast(-87.0f), x);
  const Vec n = V::round(V::mul(x, V::broadcast(1.44269504088896341f)));
  x = V::fma(n, V::broadcast(-0.693359375f), x);
  x = V::fma(n, V::broadcast(2.12194440e-4f), x);
  Vec p = V::broadcast(1.9875691500e-4f);
  p = V::fma(p, x, V::broadcast(1.3981999507e-3f));
  p = V::fma(p, x, V::broadcast(8.3334519073e-3f));
  p = V::fma(p, x, V::broadcast(4.1665795894e-2f));
  p = V::fma(p, x, V::broadcast(1.6666665459e-1f));
  p = V::fma(p, x, V::broadcast(5.0000001201e-1f));
  p = V::fma(p, V::mul(x, x), V::add(x, V::broadcast(1.0f)));
  return V::scale_by_power_of_two(p, n);
}

inline Vec sigmoid(Vec x) {
  const Vec one = V::broadcast(1.0f);
  return V::div(one, V::add(one, exp_of(V::mul(x, V::broadcast(-1.0f)))));
}

inline Vec erf_of(Vec x) {
  // x P(x²) / Q(x²), fitted to the least relative error on [0, 3.92] (benchmarks/fit_erf.py), and
  // beyond that, where floats cannot tell it from 1, exactly 1: a product follows that has to vanish.
  const Vec square = V::mul(x, x);
  Vec p = V::broadcast(2.0501202e-6f);
  p = V::fma(p, square, V::broadcast(2.84881447e-4f));
  p = V::fma(p, square, V::broadcast(3.76551179e-3f));
  p = V::fma(p, square, V::broadcast(5.2748397e-2f));
  p = V::fma(p, square, V::broadcast(0.190403864f));
  p = V::fma(p, square, V::broadcast(1.12837911f));
  Vec q = V::broadcast(3.80919955e-5f);
  q = V::fma(q, square, V::broadcast(1.16251223e-3f));
  q = V::fma(q, square, V::broadcast(1.49690034e-2f));
  q = V::fma(q, square, V::broadcast(0.114108048f));
  q = V::fma(q, square, V::broadcast(0.502073765f));
  q = V::fma(q, square, V::broadcast(1.0f));
  const Vec within = V::div(V::mul(x, p), q);
  const Vec beyond = V::copy_sign(V::broadcast(1.0f), x);
  return V::select_less(V::abs(x), V::broadcast(3.92f), within, beyond);
}

inline Vec activated(Activation kind, Vec x, Vec alpha, Vec beta) {
  const Vec zero = V::zero();
  const Vec one = V::broadcast(1.0f);
  switch (kind) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return V::max(zero, x);
    case Activation::kClip:
      return V::min(beta, V::max(alpha, x));
    case Activation::kHardSwish: {
      const Vec gate = V::fma(x, V::broadcast(1.0f / 6.0f), V::broadcast(0.5f));
      return V::mul(x, V::min(one, V::max(zero, gate)));
    }
    case Activation::kSilu:
      return V::mul(x, sigmoid(x));
    case Activation::kGelu: {
      const Vec e = erf_of(V::mul(x, V::broadcast(0.70710678118654752f)));
      return V::mul(V::mul(x, V::broadcast(0.5f)), V::add(one, e));
    }
    case Activation::kGeluTanh: {
      // x (1 + tanh u) / 2 = x sigmoid(2u)
      const Vec cube = V::fma(V::mul(V::mul(x, x), x), V::broadcast(0.044715f), x);
      return V::mul(x, sigmoid(V::mul(cube, V::broadcast(1.5957691216057308f))));
    }
    case Activation::kLeakyRelu:
      return V::select_less(x, zero, V::mul(x, alpha), x);
    case Activation::kHardSigmoid:
      return V::min(one, V::max(zero, V::fma(x, alpha, beta)));
    case Activation::kSigmoid:
      return sigmoid(x);
  }
  return x;
}

ONNXPRUNE_APART void activate(Activation kind, float alpha, float beta, float* data, size_t size) {
  const Vec a = V::broadcast(alpha), b = V::broadcast(beta);
  size_t i = 0;
  for (; i + kWidth <= size; i += kWidth) {
    V::store(data + i, activated(kind, V::load(data + i), a, b));
  }
  if (i < size) {
    const int rest = static_cast<int>(size - i);
    const Vec x = V::load_bits(data + i, V::bits_of((uint64_t{1} << rest) - 1));
    V::store_head(data + i, activated(kind, x, a, b), rest);
  }
}

// Vectors of one output row. Named members, since GCC keeps an array of vectors in memory.
template <int N>
struct Row {
  Vec a0, a1, a2, a3, a4, a5, a6, a7;
  Vec a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19;

  template <int I>
  inline Vec& get() {
    if constexpr (I == 0) return a0;
    if constexpr (I == 1) return a1;
    if constexpr (I == 2) return a2;
    if constexpr (I == 3) return a3;
    if constexpr (I == 4) return a4;
    if constexpr (I == 5) return a5;
    if constexpr (I == 6) return a6;
    if constexpr (I == 7) return a7;
  }

  template <class F>
  inline void each(F f) {
    if constexpr (N > 0) f(a0, 0);
    if constexpr (N > 1) f(a1, 1);
    if constexpr (N > 2) f(a2, 2);
    if constexpr (N > 3) f(a3, 3);
    if constexpr (N > 4) f(a4, 4);
    if constexpr (N > 5) f(a5, 5);
    if constexpr (N > 6) f(a6, 6);
    if constexpr (N > 7) f(a7, 7);
    if constexpr (N > 8) f(a8, 8);
    if constexpr (N > 9) f(a9, 9);
    if constexpr (N > 10) f(a10, 10);
    if constexpr (N > 11) f(a11, 11);
    if constexpr (N > 12) f(a12, 12);
    if constexpr (N > 13) f(a13, 13);
    if constexpr (N > 14) f(a14, 14);
    if constexpr (N > 15) f(a15, 15);
    if constexpr (N > 16) f(a16, 16);
    if constexpr (N > 17) f(a17, 17);
    if constexpr (N > 18) f(a18, 18);
    if constexpr (N > 19) f(a19, 19);
  }

  inline void multiply_add(const float* slab, Vec weight) {
    each([&](Vec& a, int i) { a = V::fma(V::load(slab + i * kWidth), weight, a); });
  }
};

// Every block has sums of its own: rounding grows with the length of a sum, and those of blocks and
// the sum of them are short.
template <int N>
inline void begin(Row<N>& row, const BlockWork& work, uint32_t index) {
  const Vec start = work.first && work.bias ? V::broadcast(work.bias[index]) : V::zero();
  row.each([&](Vec& a, int) { a = start; });
}

// Adds the residual, applies the activation and stores a row whose sums are complete. `tail` are
// the pixels of its last vector.
template <int N>
inline void complete(Row<N>& row, const Target& target, uint32_t index, int from, int tail) {
  float* y = target.y + ptrdiff_t(index) * target.y_pitch + from * kWidth;
  const bool whole = tail == kWidth;
  if (target.next_tile) {
    // One line of many planes each: more streams than processors follow.
    row.each([&](Vec&, int i) { prefetch_to_write(y + target.next_tile + i * kWidth); });
  }
  if (target.residual) {
    const float* residual =
        target.residual + ptrdiff_t(index) * target.residual_pitch + from * kWidth;
    const auto rest = V::bits_of((uint64_t{1} << tail) - 1);
    row.each([&](Vec& a, int i) {
      a = V::add(a, i < N - 1 || whole ? V::load(residual + i * kWidth)
                                       : V::load_bits(residual + i * kWidth, rest));
    });
  }
  const Vec low = V::broadcast(target.low), high = V::broadcast(target.high);
  if (target.activation == Activation::kHardSwish) {
    row.each([&](Vec& a, int) { a = activated(Activation::kHardSwish, a, low, high); });
  }
  row.each([&](Vec& a, int i) {
    a = V::min(high, V::max(low, a));
    if (i < N - 1 || whole) {
      V::store(y + i * kWidth, a);
    } else {
      V::store_head(y + i * kWidth, a, tail);
    }
  });
  if (target.activation > Activation::kHardSwish) {
    // The longer ones once, out of line, on what still lies in the cache.
    activate(target.activation, target.alpha, target.beta, y, size_t((N - 1) * kWidth + tail));
  }
}

template <int N>
inline void finish(Row<N>& row, const BlockWork& work, const Target& target, uint32_t index,
                   int from) {
  const ptrdiff_t at = ptrdiff_t(index - work.first_row) * kMaxTile + from * kWidth;
  if (!work.first) {
    const float* sums = work.sums + at;
    row.each([&](Vec& a, int i) { a = V::add(a, V::load(sums + i * kWidth)); });
  }
  if (work.last) {
    const int count = target.count - from * kWidth;
    complete(row, target, index, from, count < N * kWidth ? count - (N - 1) * kWidth : kWidth);
  } else {
    float* sums = work.sums + at;
    row.each([&](Vec& a, int i) { V::store(sums + i * kWidth, a); });
  }
}

// A row of a slab for tiles of N vectors.
template <int N>
inline const float* slab_row(const BlockWork& work, size_t row) {
  constexpr size_t kPitch = slab_pitch(N * kWidth);
  return work.slab + row * kPitch;
}

template <int N>
inline const char* one_row(const Group& group, const BlockWork& work, const Target& target,
                           const char* entries) {
  Row<N> row;
  begin(row, work, group.row[0]);
  for (uint32_t i = 0; i < group.length; ++i, entries += 8) {
    row.multiply_add(slab_row<N>(work, *reinterpret_cast<const uint32_t*>(entries)),
                     V::broadcast(*reinterpret_cast<const float*>(entries + 4)));
  }
  finish(row, work, target, group.row[0], 0);
  return entries;
}

// Four rows in one loop: its end, which processors often mispredict, then costs each row less, and
// so does reading which rows of the slab are meant. What limits it is how much processors load from
// the first-level cache, so four weights come by one load and are spread from the register.
template <int N, class Set = V>
inline const char* four_rows(const Group& group, const BlockWork& work, const Target& target,
                             const char* entries) {
  Row<N> a, b, c, d;
  begin(a, work, group.row[0]);
  begin(b, work, group.row[1]);
  begin(c, work, group.row[2]);
  begin(d, work, group.row[3]);
  for (uint32_t i = 0; i < group.length; ++i, entries += 20) {
    const uint32_t rows = *reinterpret_cast<const uint32_t*>(entries);
    const Vec weights = Set::repeat_four(reinterpret_cast<const float*>(entries + 4));
    a.multiply_add(slab_row<N>(work, rows & 0xFF), Set::template spread<0>(weights));
    b.multiply_add(slab_row<N>(work, rows >> 8 & 0xFF), Set::template spread<1>(weights));
    c.multiply_add(slab_row<N>(work, rows >> 16 & 0xFF), Set::template spread<2>(weights));
    d.multiply_add(slab_row<N>(work, rows >> 24), Set::template spread<3>(weights));
  }
  finish(a, work, target, group.row[0], 0);
  finish(b, work, target, group.row[1], 0);
  finish(c, work, target, group.row[2], 0);
  finish(d, work, target, group.row[3], 0);
  return entries;
}

// Brings what the next block reads into the cache, a little with each group: weights read it in no
// order, which processors do not foresee.
class Ahead {
 public:
  explicit Ahead(const BlockWork& work)
      : at_(work.ahead),
        end_(work.ahead + work.ahead_floats),
        share_(ptrdiff_t(work.ahead_floats / (work.group_count + 1) / 16 * 16 + 16)) {}

  inline void step() {
    if (at_ >= end_) return;
    for (ptrdiff_t i = 0; i < share_; i += 16) prefetch(at_ + i);
    at_ += share_;
  }

 private:
  const float* at_;
  const float* end_;
  ptrdiff_t share_;
};

// Brings the sums of a group that comes soon into the cache: groups lie in the order of their
// lengths, which processors do not foresee.
template <int N>
inline void fetch_sums(const BlockWork& work, size_t group) {
  if (work.first || group >= work.group_count) return;
  const uint32_t row = work.groups[group].row[0];
  const float* sums = work.sums + ptrdiff_t(row - work.first_row) * kMaxTile;
  for (int i = 0; i < N * kWidth; i += 16) prefetch(sums + i);
}

template <int N>
ONNXPRUNE_FLATTEN void unstructured_rows(const BlockWork& work, const Target& target) {
  const char* entries = static_cast<const char*>(work.entries);
  Ahead ahead(work);
  for (size_t g = 0; g < work.group_count; ++g) {
    const Group& group = work.groups[g];
    ahead.step();
    if constexpr (V::kGroupRows == 1) fetch_sums<N>(work, g + 2);
    if constexpr (V::kGroupRows == 4) {
      if (group.rows == 4) {
        entries = four_rows<N>(group, work, target, entries);
        continue;
      }
    }
    entries = one_row<N>(group, work, target, entries);
  }
}

template <int N>
struct Rows {
  Row<N> a, b, c, d;
};

template <int I, int N>
inline void block_step(Rows<N>& rows, const float* pixels, Vec wa, Vec wb, Vec wc, Vec wd) {
  if constexpr (I < N) {
    const Vec x = V::load(pixels + I * kWidth);
    rows.a.template get<I>() = V::fma(x, wa, rows.a.template get<I>());
    rows.b.template get<I>() = V::fma(x, wb, rows.b.template get<I>());
    rows.c.template get<I>() = V::fma(x, wc, rows.c.template get<I>());
    rows.d.template get<I>() = V::fma(x, wd, rows.d.template get<I>());
    block_step<I + 1, N>(rows, pixels, wa, wb, wc, wd);
  }
}

template <int I, int N>
inline void load_row(Row<N>& row, const float* from) {
  if constexpr (I < N) {
    row.template get<I>() = V::loaded(from + I * kWidth);
    load_row<I + 1, N>(row, from);
  }
}

template <int I, int N>
inline void add_products(Row<N>& sums, Row<N>& x, Vec weight) {
  if constexpr (I < N) {
    sums.template get<I>() = V::fma(x.template get<I>(), weight, sums.template get<I>());
    add_products<I + 1, N>(sums, x, weight);
  }
}

// The same where registers hold three vectors of four rows, and beside them pixels or weights.
template <int N>
inline void block_step_by_rows(Rows<N>& rows, const float* pixels, const float* weights) {
  Row<N> x;
  load_row<0>(x, pixels);
  add_products<0>(rows.a, x, V::broadcast(weights[0]));
  add_products<0>(rows.b, x, V::broadcast(weights[1]));
  add_products<0>(rows.c, x, V::broadcast(weights[2]));
  add_products<0>(rows.d, x, V::broadcast(weights[3]));
}

template <int N>
ONNXPRUNE_FLATTEN void block_rows(const Group& group, const BlockWork& work, const Target& target,
                      const char* entries, int from) {
  const auto pitch = size_t(slab_pitch(target.count));
  const float* slab = work.slab + from * kWidth;
  Rows<N> rows;
  begin(rows.a, work, group.row[0]);
  begin(rows.b, work, group.row[1]);
  begin(rows.c, work, group.row[2]);
  begin(rows.d, work, group.row[3]);
  for (uint32_t i = 0; i < group.length; ++i, entries += 20) {
    const float* values = reinterpret_cast<const float*>(entries + 4);
    const float* pixels = slab + *reinterpret_cast<const uint32_t*>(entries) * pitch;
    if constexpr (V::kPixelsStay) {
      block_step_by_rows(rows, pixels, values);
    } else {
      block_step<0, N>(rows, pixels, V::broadcast(values[0]), V::broadcast(values[1]),
                       V::broadcast(values[2]), V::broadcast(values[3]));
    }
  }
  finish(rows.a, work, target, group.row[0], from);
  finish(rows.b, work, target, group.row[1], from);
  finish(rows.c, work, target, group.row[2], from);
  finish(rows.d, work, target, group.row[3], from);
}

template <int N>
void call_unstructured(int vectors, const BlockWork& work, const Target& target) {
  if (vectors == N) {
    unstructured_rows<N>(work, target);
  } else if constexpr (N > 1) {
    call_unstructured<N - 1>(vectors, work, target);
  }
}

void unstructured(const BlockWork& work, const Target& target) {
  call_unstructured<kVectors>(vectors_of(target.count), work, target);
}

template <int N>
void call_block_rows(int vectors, const Group& group, const BlockWork& work, const Target& target,
                    const char* entries, int from) {
  if (vectors == N) {
    block_rows<N>(group, work, target, entries, from);
  } else if constexpr (N > 1) {
    call_block_rows<N - 1>(vectors, group, work, target, entries, from);
  }
}

void blocked(const BlockWork& work, const Target& target) {
  const char* entries = static_cast<const char*>(work.entries);
  const int vectors = vectors_of(target.count);
  Ahead ahead(work);
  for (size_t g = 0; g < work.group_count; ++g) {
    const Group& group = work.groups[g];
    ahead.step();
    for (int from = 0; from < vectors; from += V::kBlockVectors) {
      const int some = vectors - from < V::kBlockVectors ? vectors - from : V::kBlockVectors;
      call_block_rows<V::kBlockVectors>(some, group, work, target, entries, from);
    }
    entries += size_t{20} * group.length;
  }
}

// The pixels of vector `index` of a tile that lie inside the image.
inline typename V::Bits inside(const Shift& tap, int index) {
  const int from = index * kWidth;
  return V::bits_of(uint64_t{tap.inside[from / 16]} >> from % 16 & ((uint64_t{1} << kWidth) - 1));
}

template <int N>
void pack_shifted_rows(float* slab, const SlabRow* rows, size_t row_count, const float* source,
                       ptrdiff_t channel_stride, const Shift* taps) {
  constexpr int kPitch = slab_pitch(N * kWidth);
  for (size_t k = 0; k < row_count;) {
    const uint32_t number = rows[k].tap;
    const Shift& tap = taps[number];
    typename V::Bits bits[N];
    for (int i = 0; i < N; ++i) bits[i] = inside(tap, i);
    for (; k < row_count && rows[k].tap == number; ++k, slab += kPitch) {
      const float* from = source + ptrdiff_t(rows[k].channel) * channel_stride + tap.shift;
      Row<N> row;
      if (tap.whole) {
        row.each([&](Vec& x, int i) { x = V::load(from + i * kWidth); });
      } else {
        row.each([&](Vec& x, int i) { x = V::load_bits(from + i * kWidth, bits[i]); });
      }
      row.each([&](Vec& x, int i) { V::store(slab + i * kWidth, x); });
    }
  }
}

// Calls `function.template run<N>()` for a number of vectors.
template <int N, class Function>
inline void with_vectors(int vectors, const Function& function) {
  if (vectors == N) {
    function.template run<N>();
  } else if constexpr (N > 1) {
    with_vectors<N - 1>(vectors, function);
  }
}

struct ShiftedPacking {
  float* slab;
  const SlabRow* rows;
  size_t row_count;
  const float* source;
  ptrdiff_t channel_stride;
  const Shift* taps;

  template <int N>
  void run() const {
    pack_shifted_rows<N>(slab, rows, row_count, source, channel_stride, taps);
  }
};

void pack_shifted(float* slab, const SlabRow* rows, size_t row_count, const float* source,
                  ptrdiff_t channel_stride, const Shift* taps, int count) {
  with_vectors<kVectors>(vectors_of(count),
                         ShiftedPacking{slab, rows, row_count, source, channel_stride, taps});
}

void copy_rows(const float* from, ptrdiff_t pitch, size_t rows, size_t size, float* to,
               ptrdiff_t to_pitch) {
  const size_t whole = size / kWidth * kWidth;
  const int rest = static_cast<int>(size - whole);
  const auto bits = V::bits_of((uint64_t{1} << rest) - 1);
  for (size_t y = 0; y < rows; ++y, from += pitch, to += to_pitch) {
    for (size_t at = 0; at < whole; at += kWidth) V::store(to + at, V::load(from + at));
    if (rest) V::store_head(to + whole, V::load_bits(from + whole, bits), rest);
  }
}

void part_columns(const float* from, ptrdiff_t pitch, size_t rows, size_t size, float* even,
                  float* odd, ptrdiff_t to_pitch) {
  constexpr uint64_t kFull = (uint64_t{1} << kWidth) - 1;
  const size_t rest = size % (2 * kWidth);
  const uint64_t bits = (uint64_t{1} << rest) - 1;
  const auto low_bits = V::bits_of(bits & kFull), high_bits = V::bits_of(bits >> kWidth);
  const int evens = static_cast<int>((rest + 1) / 2), odds = static_cast<int>(rest / 2);
  for (size_t y = 0; y < rows; ++y, from += pitch) {
    size_t at = 0;
    for (; at + 2 * kWidth <= size; at += 2 * kWidth) {
      const Vec low = V::load(from + at), high = V::load(from + at + kWidth);
      if (even) V::store(even + at / 2, V::even(low, high));
      if (odd) V::store(odd + at / 2, V::odd(low, high));
    }
    if (rest) {
      const Vec low = V::load_bits(from + at, low_bits);
      const Vec high = rest > kWidth ? V::load_bits(from + at + kWidth, high_bits) : V::zero();
      if (even) V::store_head(even + at / 2, V::even(low, high), evens);
      if (odd && odds) V::store_head(odd + at / 2, V::odd(low, high), odds);
    }
    if (even) even += to_pitch;
    if (odd) odd += to_pitch;
  }
}

// What a few channels later is read, which lies too far apart for processors to foresee.
constexpr ptrdiff_t kChannelsAhead = 8;

void pack_windows(float* slab, const SlabRow* rows, size_t row_count, const float* source,
                  const WindowList* taps, int count) {
  const int vectors = vectors_of(count);
  const int pitch = slab_pitch(count);
  for (size_t k = 0; k < row_count; ++k, slab += pitch) {
    const Window* window = taps[rows[k].tap].first;
    const Window* const end = window + taps[rows[k].tap].size;
    for (int i = 0; i < vectors; ++i) {
      Vec x = V::zero();
      for (; window != end && window->vector == i; ++window) {
        const float* from = source + window->base + ptrdiff_t(rows[k].channel) * window->stride;
        prefetch(from + kChannelsAhead * window->stride);
        if (window->every_second) {
          x = V::even(V::load(from), V::load(from + kWidth));
        } else {
          x = V::take(x, from, *window);
        }
      }
      V::store(slab + i * kWidth, x);
    }
  }
}

void pack_transposed(float* slab, const float* source, ptrdiff_t pitch, size_t columns, int count) {
  const int to_pitch = slab_pitch(count);
  const int padded = vectors_of(count) * kWidth;
  int token = 0;
  for (; token + V::kSquare <= count; token += V::kSquare) {
    size_t column = 0;
    for (; column + V::kSquare <= columns; column += V::kSquare) {
      V::transpose(source + token * pitch + ptrdiff_t(column), pitch,
                   slab + ptrdiff_t(column) * to_pitch + token, to_pitch);
    }
    for (; column < columns; ++column) {
      for (int i = token; i < token + V::kSquare; ++i) {
        slab[ptrdiff_t(column) * to_pitch + i] = source[i * pitch + ptrdiff_t(column)];
      }
    }
  }
  for (; token < padded; ++token) {
    for (size_t column = 0; column < columns; ++column) {
      slab[ptrdiff_t(column) * to_pitch + token] =
          token < count ? source[token * pitch + ptrdiff_t(column)] : 0.0f;
    }
  }
}

void store_transposed(const float* sums, size_t rows, const Target& target) {
  int token = 0;
  for (; token + V::kSquare <= target.count; token += V::kSquare) {
    size_t row = 0;
    for (; row + V::kSquare <= rows; row += V::kSquare) {
      V::transpose(sums + ptrdiff_t(row) * kMaxTile + token, kMaxTile,
                   target.y + token * target.y_pitch + ptrdiff_t(row), target.y_pitch);
    }
    for (; row < rows; ++row) {
      for (int i = token; i < token + V::kSquare; ++i) {
        target.y[i * target.y_pitch + ptrdiff_t(row)] = sums[ptrdiff_t(row) * kMaxTile + i];
      }
    }
  }
  for (; token < target.count; ++token) {
    for (size_t row = 0; row < rows; ++row) {
      target.y[token * target.y_pitch + ptrdiff_t(row)] = sums[ptrdiff_t(row) * kMaxTile + token];
    }
  }
  for (token = 0; token < target.count; ++token) {
    float* y = target.y + token * target.y_pitch;
    if (target.residual) {
      const float* residual = target.residual + token * target.residual_pitch;
      size_t i = 0;
      for (; i + kWidth <= rows; i += kWidth) {
        V::store(y + i, V::add(V::load(y + i), V::load(residual + i)));
      }
      for (; i < rows; ++i) y[i] += residual[i];
    }
    if (target.activation != Activation::kNone) {
      activate(target.activation, target.alpha, target.beta, y, rows);
    }
  }
}

void dot_rows(const SparseMatrix& matrix, size_t from, size_t to, const float* x, float* y) {
  for (size_t row = from; row < to; ++row) {
    const int32_t start = matrix.row_starts[row];
    const int32_t size = matrix.row_starts[row + 1] - start;
    const float* values = matrix.values + start;
    const uint16_t* columns = matrix.column_of + start;
    Vec sum = V::zero();
    int32_t i = 0;
    for (; i + kWidth <= size; i += kWidth) {
      sum = V::fma(V::load(values + i), V::gather(x, columns + i), sum);
    }
    float total = V::sum(sum);
    for (; i < size; ++i) total += values[i] * x[columns[i]];
    y[row - from] = total;
  }
}

#include "depthwise_body.h"
#include "expansion_body.h"

constexpr KernelSet kSet = {
    V::kName,     V::kWidth,    V::kGroupRows,
    unstructured, blocked,      pack_shifted, pack_windows,
    copy_rows,    part_columns, depthwise_band, depthwise_shifted, depthwise_windows, expand, pack_transposed, store_transposed, dot_rows, activate,
};
