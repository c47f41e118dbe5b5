// What an instruction set provides. All of it works on tiles of output pixels (or tokens).
//
// A tile of the input lies in a slab: row k holds what weight column k meets, one float for each
// pixel of the tile. A weight then is one broadcast and a few multiply-adds on contiguous floats,
// whatever kernel, stride or dilation the convolution has.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_M_X64)
#include <xmmintrin.h>
#endif

// For functions whose sums have to stay in registers: all that they call is compiled into them,
// whatever else is in the file.
#if defined(__GNUC__)
#define ONNXPRUNE_FLATTEN __attribute__((flatten))
#define ONNXPRUNE_APART __attribute__((noinline))
#else
#define ONNXPRUNE_FLATTEN
#define ONNXPRUNE_APART
#endif

namespace onnxprune {

// Pixels of a tile. A rest of up to kMaxTile - kTile belongs to the tile before it, since a tile of
// few pixels costs nearly as much as a whole one.
constexpr int kTile = 64;
constexpr int kMaxTile = 80;

// Floats from one row of a slab to the next for a tile of `count` pixels: whole cache lines.
constexpr int slab_pitch(int count) { return (count + 15) / 16 * 16; }

enum class Activation : int {
  kNone,
  kRelu,
  kClip,
  kHardSwish,
  kSilu,
  kGelu,
  kGeluTanh,
  kLeakyRelu,
  kHardSigmoid,
  kSigmoid,
};

// Neighbouring entries of the packed weights: `rows` outputs that are computed together, each with
// `length` entries. Rows beyond `rows` of `row` are unused.
struct Group {
  uint32_t row[4];
  uint32_t rows;
  uint32_t length;
};

// Where results go, and what happens to them on the way.
struct Target {
  float* y;                // first pixel of the tile in output row 0
  const float* residual;   // likewise, or null
  ptrdiff_t y_pitch;       // floats from one output row to the next
  ptrdiff_t residual_pitch;
  ptrdiff_t next_tile;     // floats from a row to that of the tile that is computed next; or 0
  int count;               // pixels of the tile, 1 to kMaxTile
  Activation activation;
  float alpha, beta;
  float low, high;         // what results are cut to: bounds of Relu and Clip, else infinite
};

// One block of weight columns for some groups of rows.
struct BlockWork {
  const Group* groups;
  size_t group_count;
  const void* entries;     // of the first group
  const float* slab;
  float* sums;             // (rows, kMaxTile) partial sums, row `row - first_row`
  uint32_t first_row;
  const float* bias;       // per output row, or null
  bool first, last;        // whether this is the first and the last block of columns
  const float* ahead;      // what the next block reads, to be brought into the cache meanwhile
  size_t ahead_floats;
};

// Compressed rows, as the model file holds them. The arrays belong to someone else.
struct SparseMatrix {
  size_t rows;
  size_t columns;
  const float* values;
  const uint16_t* column_of;
  const int32_t* row_starts;
};

// Pixels of a tile as one tap of the kernel sees them: `shift` floats from the tile's first pixel,
// with a bit for each pixel that lies inside the image. Where `whole` is set, all pixels do, and so
// many that no vector is a part of one only.
struct Shift {
  ptrdiff_t shift;
  uint16_t inside[kMaxTile / 16];
  bool whole;
};

// The same where pixels are not neighbours. Lane i of one vector of a slab row is float
// `index[i]` of the 2 × width floats that begin at `base + channel * stride`, for lanes in
// `lanes`; `needed` are the floats that may be read. Several windows make up a vector.
struct Window {
  alignas(64) int32_t index[16];
  int32_t base, stride;
  uint32_t needed;
  uint16_t lanes;
  uint16_t vector;
  bool every_second;  // whether all lanes are the floats 0, 2, 4 …, and all 2 × width may be read
};

struct WindowList {
  const Window* first;
  size_t size;
};

// What a row of the slab holds.
struct SlabRow {
  uint32_t channel;
  uint32_t tap;
};

inline void set_activation(Target& target, Activation activation, float alpha, float beta) {
  target.activation = activation;
  target.alpha = alpha;
  target.beta = beta;
  target.low = activation == Activation::kRelu ? 0.0f
               : activation == Activation::kClip ? alpha
                                                 : -INFINITY;
  target.high = activation == Activation::kClip ? beta : INFINITY;
}

inline void prefetch(const float* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#elif defined(_M_X64)
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);
#else
  (void)address;
#endif
}

// The same for what is to be overwritten: another core that holds it gives it up at once.
inline void prefetch_to_write(float* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 1);
#else
  prefetch(address);
#endif
}

// Rows of one channel, laid out so that each tap of an output pixel is a plain load. Output pixel
// (y, x) meets, at row k and column c of the kernel, float
// (k % row_planes) * row_plane + (y + k / row_planes) * pitch + x + columns[c] of the memory.
struct Band {
  const float* memory;
  ptrdiff_t pitch, row_plane;
  const ptrdiff_t* columns;
  int kernel_rows, kernel_columns;
  int row_planes;     // 1, or 2 where even and odd rows are parted
  int width;          // output pixels of a row
  int rows;           // output rows in this band
  int64_t first_row;  // of them
};

// Whether bands serve a kernel of so many rows.
constexpr bool in_bands(int64_t kernel_rows) {
  return kernel_rows % 2 == 1 && kernel_rows <= 7;
}

// A depthwise convolution of some channels.
struct DepthwiseWork {
  const float* x;            // first pixel of channel 0
  ptrdiff_t channel_stride;
  const float* weights;      // (channels, taps)
  const float* bias;         // per channel, or null
  size_t taps;
  uint32_t from, to;         // channels
};

// Some pixels of one output channel of a pointwise convolution of a plain image.
struct ExpansionWork {
  const float* x;            // first of the pixels in channel 0
  ptrdiff_t channel_stride;
  const float* values;       // weights that are not zero, and the channels that they meet
  const uint16_t* columns;
  size_t nonzeros;
  float bias;
  size_t count;              // pixels
};

struct KernelSet {
  const char* name;
  int width;       // floats of a vector
  int group_rows;  // most rows of a group in unstructured weights, 1 or 4

  // An entry of a group of four rows: uint8 slab_rows[4], float values[4]; of one row: uint32
  // slab_row, float value; of blocked weights: uint32 slab_row, float values[4].
  void (*unstructured)(const BlockWork&, const Target&);
  void (*blocked)(const BlockWork&, const Target&);

  // Fill a slab; pixels beyond `count` of the last vector are zero.
  void (*pack_shifted)(float* slab, const SlabRow* rows, size_t row_count, const float* source,
                       ptrdiff_t channel_stride, const Shift* taps, int count);
  void (*pack_windows)(float* slab, const SlabRow* rows, size_t row_count, const float* source,
                       const WindowList* taps, int count);
  // Copies `rows` rows of `size` floats, `pitch` apart, to where they are `to_pitch` apart.
  void (*copy_rows)(const float* from, ptrdiff_t pitch, size_t rows, size_t size, float* to,
                    ptrdiff_t to_pitch);
  // Parts `rows` rows of `size` floats, `pitch` apart, into their even and their odd columns, rows
  // of which are `to_pitch` apart. Either may be null.
  void (*part_columns)(const float* from, ptrdiff_t pitch, size_t rows, size_t size, float* even,
                       float* odd, ptrdiff_t to_pitch);
  // A channel's output rows in a band; the target is that of its first pixel in the band.
  void (*depthwise_band)(const Band&, const float* weights, float bias, const Target&);
  // All tiles of each channel; `taps` are (tiles, taps), the target is that of the first tile, and
  // `last_count` are the pixels of the last one.
  void (*depthwise_shifted)(const DepthwiseWork&, const Shift* taps, size_t tiles, int last_count,
                            Target);
  // One tile of some channels, whatever its window.
  void (*depthwise_windows)(const DepthwiseWork&, const WindowList* taps, const Target&);
  // Of the target only `y` and the activation count. Up to a vector beyond the pixels is overwritten.
  void (*expand)(const ExpansionWork&, const Target&);
  // Row j of the slab is column j of a (tokens, features) matrix; and the way back, in which the
  // residual is added and the activation applied.
  void (*pack_transposed)(float* slab, const float* source, ptrdiff_t pitch, size_t columns,
                          int count);
  void (*store_transposed)(const float* sums, size_t rows, const Target&);
  // y[row] = x · the row of a sparse matrix, for rows `from` to `to`.
  void (*dot_rows)(const SparseMatrix&, size_t from, size_t to, const float* x, float* y);
  void (*activate)(Activation, float alpha, float beta, float* data, size_t size);
};

// Null where this processor, or the compiler that built the library, lacks the instructions.
const KernelSet* avx512_kernels();
const KernelSet* avx2_kernels();
const KernelSet* neon_kernels();
const KernelSet* portable_kernels();

// The fastest set that this processor runs. ONNXPRUNE_KERNELS names another one, for tests.
const KernelSet& kernels();

}  // namespace onnxprune
