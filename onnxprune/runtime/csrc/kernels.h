// What an instruction set provides. All of it works on tiles of kTile output pixels (or tokens).
//
// A tile of the input lies in a slab: row k holds what weight column k meets, kTile floats for
// kTile pixels. A weight then is one broadcast and kTile / width multiply-adds on contiguous
// floats, whatever kernel, stride or dilation the convolution has.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace onnxprune {

constexpr int kTile = 64;

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
  int count;               // pixels of the tile, 1 to kTile
  Activation activation;
  float alpha, beta;
};

// One block of weight columns for some groups of rows.
struct BlockWork {
  const Group* groups;
  size_t group_count;
  const void* entries;     // of the first group
  const float* slab;
  float* sums;             // (rows, kTile) partial sums, row `row - first_row`
  uint32_t first_row;
  const float* bias;       // per output row, or null
  bool first, last;        // whether this is the first and the last block of columns
};

// Pixels of a tile as one tap of the kernel sees them: `shift` floats from the tile's first pixel,
// and a bit for each pixel that lies inside the image.
struct Shift {
  ptrdiff_t shift;
  uint64_t inside;
};

// The same where pixels are not neighbours: pixel i of channel c lies at
// `base[i] + c * stride[i]`; outside the image base is -1.
struct Gather {
  alignas(64) int32_t base[kTile];
  alignas(64) int32_t stride[kTile];
};

// What a row of the slab holds.
struct SlabRow {
  uint32_t channel;
  uint32_t tap;
};

struct KernelSet {
  const char* name;
  int pair;        // rows of a group in unstructured weights, 1 or 2
  int block_rows;  // rows of a group in blocked weights

  // Entries of a group of `pair` rows: uint32 offsets[pair], float values[pair]; offsets are in
  // bytes from the slab. Of a group of one row: uint32 offset, float value. Of blocked weights:
  // uint32 offset, float values[4].
  void (*unstructured)(const BlockWork&, const Target&);
  void (*blocked)(const BlockWork&, const Target&);

  void (*pack_shifted)(float* slab, const SlabRow* rows, size_t row_count, const float* source,
                       ptrdiff_t channel_stride, const Shift* taps, int count);
  void (*pack_gathered)(float* slab, const SlabRow* rows, size_t row_count, const float* source,
                        const Gather* taps, int count);
  // slab row j = column `first + j` of a (tokens, features) matrix; and the way back, in which
  // the residual is added and the activation applied.
  void (*pack_transposed)(float* slab, const float* source, ptrdiff_t pitch, size_t columns,
                          int count);
  void (*store_transposed)(const float* sums, size_t rows, const Target&);
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
