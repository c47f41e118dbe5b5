// Depthwise kernels; a part of kernels_body.h.

template <int I, int Y, int H, int R>
inline void add_tap(Row<R>& sums, Row<H>& weights, Vec x) {
  if constexpr (I < R) {
    constexpr int kTap = Y - I;
    if constexpr (kTap >= 0 && kTap < H) {
      Vec& sum = sums.template get<I>();
      sum = V::fma(x, weights.template get<kTap>(), sum);
    }
    add_tap<I + 1, Y, H, R>(sums, weights, x);
  }
}

// Multiplies one column of the kernel, of H rows, with what it meets, for vectors of R output
// rows: an input row is loaded once for all of them. `from` is the column's first input row.
template <int Y, int H, int R>
inline void correlate(Row<R>& sums, Row<H>& weights, const float* from, ptrdiff_t pitch) {
  if constexpr (Y < R - 1 + H) {
    add_tap<0, Y, H, R>(sums, weights, V::loaded(from + Y * pitch));
    correlate<Y + 1, H, R>(sums, weights, from, pitch);
  }
}

template <int H, int R>
inline void correlate_columns(Row<R>& sums, const Band& band, const float* from, ptrdiff_t pitch,
                              const float* weights, int weight_step) {
  for (int column = 0; column < band.kernel_columns; ++column) {
    Row<H> taps;
    taps.each([&](Vec& w, int i) { w = V::broadcast(weights[column + i * weight_step]); });
    correlate<0, H, R>(sums, taps, from + band.columns[column], pitch);
  }
}

// A kernel of K rows, which meet P planes of input rows in turn.
template <int K, int P>
struct BandKernel {
  const Band& band;
  const float* weights;
  Vec start;
  const Target& target;
  bool spill;  // whether pixels beyond a row may be written, where later rows of the band lie

  // The sums of R vectors, `pitch` floats apart, the first at `from`.
  template <int R>
  inline void convolve(Row<R>& sums, const float* from, ptrdiff_t pitch) const {
    sums.each([&](Vec& sum, int) { sum = start; });
    correlate_columns<(K + P - 1) / P, R>(sums, band, from, pitch, weights,
                                             P * band.kernel_columns);
    if constexpr (P == 2 && K > 1) {
      correlate_columns<K / 2, R>(sums, band, from + band.row_plane, pitch,
                                     weights + band.kernel_columns, 2 * band.kernel_columns);
    }
  }

  // A vector without a residual; longer activations follow later.
  inline void store(Vec sum, float* y) const {
    const Vec low = V::broadcast(target.low), high = V::broadcast(target.high);
    if (target.activation == Activation::kHardSwish) {
      sum = activated(Activation::kHardSwish, sum, low, high);
    }
    V::store(y, V::min(high, V::max(low, sum)));
  }

  // `stored` of R rows of one vector, from `row` and `column` on.
  template <int R>
  inline void vector_rows(const float* from, ptrdiff_t pitch, int row, int column,
                          int stored) const {
    Row<R> sums;
    convolve<R>(sums, from, pitch);
    const int rest = target.count - column;
    float* const y = target.y + row * target.y_pitch + column;
    const auto whole = [&](int i) {
      return spill && (rest >= kWidth || (band.rows - row - i) * target.count - column >= kWidth);
    };
    if (stored == R && whole(R - 1)) {
      sums.each([&](Vec& sum, int i) { store(sum, y + i * target.y_pitch); });
      return;
    }
    sums.each([&](Vec& sum, int i) {
      if (i >= stored) return;
      if (whole(i)) {
        store(sum, y + i * target.y_pitch);
      } else {
        store_part(sum, row + i, column, rest < kWidth ? rest : kWidth);
      }
    });
  }

  void store_part(Vec sum, int row, int column, int count) const {
    Row<1> one;
    one.a0 = sum;
    Target place = target;
    place.y += column;
    if (place.residual) place.residual += column;
    complete(one, place, uint32_t(row), 0, count);
  }

  // A block of rows, in vectors. Where rows hold a whole one, the last overlaps the one before.
  template <int R>
  inline void row_block(int row, int stored) const {
    const float* const source = band.memory + row * band.pitch;
    for (int column = 0; column < band.width; column += kWidth) {
      const int overlap = column + kWidth - band.width;
      if (spill && overlap > 0 && column > 0) column -= overlap;
      vector_rows<R>(source + column, band.pitch, row, column, stored);
    }
  }

  void rows() const {
    int row = 0;
    for (; row + 2 < band.rows; row += 4) {
      // A row beyond the band's is computed and not stored.
      row_block<4>(row, band.rows - row < 4 ? 3 : 4);
    }
    for (; row < band.rows; ++row) row_block<1>(row, 1);
  }
};

// An image of one row: neighbouring vectors of it take the place of rows.
inline void single_row(Band band, const float* weights, Vec start, Target target) {
  const int width = target.count;
  target.y_pitch = target.residual_pitch = target.count = kWidth;
  const bool spill = !target.residual;
  band.rows = width / kWidth;
  const BandKernel<1, 1> kernel{band, weights, start, target, spill};
  int row = 0;
  for (; row + 4 <= band.rows; row += 4) {
    kernel.vector_rows<4>(band.memory + row * kWidth, kWidth, row, 0, 4);
  }
  for (; row < band.rows; ++row) {
    kernel.vector_rows<1>(band.memory + row * kWidth, kWidth, row, 0, 1);
  }
  if (width % kWidth == 0) return;
  target.count = width % kWidth;
  kernel.vector_rows<1>(band.memory + row * kWidth, kWidth, row, 0, 1);
}

template <int K, int P>
ONNXPRUNE_FLATTEN void band_rows(const Band& band, const float* weights, Vec start, const Target& target) {
  // A residual may lie where the results go, so nothing may be written before it is read there.
  const bool spill = !target.residual;
  Target place = target;
  if (spill && target.activation > Activation::kHardSwish) place.activation = Activation::kNone;
  if (K == 1 && P == 1 && band.rows == 1) {
    single_row(band, weights, start, place);
  } else {
    BandKernel<K, P>{band, weights, start, place, spill}.rows();
  }
  if (place.activation != target.activation) {
    const size_t pixels = size_t(band.rows) * size_t(band.width);
    activate(target.activation, target.alpha, target.beta, target.y, pixels);
  }
}

template <int P>
inline void band_of_planes(const Band& band, const float* weights, Vec start,
                           const Target& target) {
  switch (band.kernel_rows) {  // those of in_bands()
    case 1:
      return band_rows<1, P>(band, weights, start, target);
    case 3:
      return band_rows<3, P>(band, weights, start, target);
    case 5:
      return band_rows<5, P>(band, weights, start, target);
    case 7:
      return band_rows<7, P>(band, weights, start, target);
  }
}

void depthwise_band(const Band& band, const float* weights, float bias, const Target& target) {
  const Vec start = V::broadcast(bias);
  if (band.row_planes == 1) {
    band_of_planes<1>(band, weights, start, target);
  } else {
    band_of_planes<2>(band, weights, start, target);
  }
}

template <int N>
ONNXPRUNE_FLATTEN void depthwise_tile(const float* source, const float* weights,
                                      size_t tap_count, Vec start, const Shift* taps,
                                      const Target& target, uint32_t channel) {
  Row<N> row;
  row.each([&](Vec& a, int) { a = start; });
  for (size_t i = 0; i < tap_count; ++i) {
    const Shift& tap = taps[i];
    const Vec weight = V::broadcast(weights[i]);
    const float* from = source + tap.shift;
    if (tap.whole) {
      row.multiply_add(from, weight);
    } else {
      row.each([&](Vec& a, int v) { a = V::fma_bits(from + v * kWidth, inside(tap, v), weight, a); });
    }
  }
  complete(row, target, channel, 0, target.count - (N - 1) * kWidth);
}

struct DepthwiseTile {
  const float* source;
  const float* weights;
  size_t tap_count;
  Vec start;
  const Shift* taps;
  const Target& target;
  uint32_t channel;

  template <int N>
  void run() const {
    depthwise_tile<N>(source, weights, tap_count, start, taps, target, channel);
  }
};

void depthwise_shifted(const DepthwiseWork& work, const Shift* taps, size_t tiles, int last_count,
                       Target target) {
  const Target first = target;
  for (uint32_t channel = work.from; channel < work.to; ++channel) {
    const float* source = work.x + ptrdiff_t(channel) * work.channel_stride;
    const float* weights = work.weights + size_t{channel} * work.taps;
    const Vec start = work.bias ? V::broadcast(work.bias[channel]) : V::zero();
    target = first;
    target.count = kTile;
    for (size_t tile = 0; tile + 1 < tiles; ++tile) {
      depthwise_tile<kTile / kWidth>(source, weights, work.taps, start, taps + tile * work.taps,
                                     target, channel);
      target.y += kTile;
      if (target.residual) target.residual += kTile;
    }
    target.count = last_count;
    with_vectors<kVectors>(vectors_of(last_count),
                           DepthwiseTile{source, weights, work.taps, start,
                                         taps + (tiles - 1) * work.taps, target, channel});
  }
}

void depthwise_windows(const DepthwiseWork& work, const WindowList* taps, const Target& target) {
  const int vectors = vectors_of(target.count);
  Vec sums[kVectors];
  for (uint32_t channel = work.from; channel < work.to; ++channel) {
    const float* source = work.x + ptrdiff_t(channel) * work.channel_stride;
    const float* weights = work.weights + size_t{channel} * work.taps;
    const Vec start = work.bias ? V::broadcast(work.bias[channel]) : V::zero();
    for (int i = 0; i < vectors; ++i) sums[i] = start;
    for (size_t tap = 0; tap < work.taps; ++tap) {
      const Vec weight = V::broadcast(weights[tap]);
      const Window* const end = taps[tap].first + taps[tap].size;
      for (const Window* window = taps[tap].first; window != end; ++window) {
        Vec& sum = sums[window->vector];
        sum = V::fma(V::take(V::zero(), source + window->base, *window), weight, sum);
      }
    }
    for (int i = 0; i < vectors; ++i) {
      Row<1> row;
      row.a0 = sums[i];
      const int rest = target.count - i * kWidth;
      complete(row, target, channel, i, rest < kWidth ? rest : kWidth);
    }
  }
}
