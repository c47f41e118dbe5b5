#pragma once

#include <cstdint>
#include <vector>

#include "packed.h"
#include "scratch.h"

namespace onnxprune {

// What a SparseConv node says. One-dimensional convolutions have a height of 1.
struct ConvolutionSpec {
  int64_t channels = 0;
  int64_t kernel[2] = {1, 1};
  int64_t strides[2] = {1, 1};
  int64_t pads[4] = {0, 0, 0, 0};  // top, left, bottom, right
  int64_t dilations[2] = {1, 1};
  bool x_tiled = false;
  bool y_tiled = false;
  Activation activation = Activation::kNone;
  float alpha = 0, beta = 0;

  bool pointwise() const {
    return kernel[0] * kernel[1] * strides[0] * strides[1] == 1 &&
           pads[0] + pads[1] + pads[2] + pads[3] == 0;
  }
  bool reads_in_place() const { return x_tiled && pointwise(); }
  int64_t output_size(int axis, int64_t input_size) const {
    const int64_t reach = dilations[axis] * (kernel[axis] - 1) + 1;
    const int64_t room = input_size + pads[axis] + pads[axis + 2] - reach;
    return room < 0 ? 0 : room / strides[axis] + 1;
  }
};

struct ConvolutionCall {
  const float* x;
  const float* bias;      // or null
  const float* residual;  // or null
  float* y;
  int64_t batch, height, width, out_height, out_width;
};

// A convolution for one call, cut into tasks that can run in any order and at the same time.
class ConvolutionTasks {
 public:
  ConvolutionTasks(const ConvolutionSpec&, const PackedWeights&, const KernelSet&,
                   const ConvolutionCall&);

  size_t count() const { return size_t(call_.batch) * tiles_ * splits_; }
  void run(size_t task) const;

 private:
  // Names what the weights read after this block of an input in place.
  void fetch_ahead(BlockWork& work, const float* tile_start, size_t block, size_t tile) const;
  void make_shifts(Shift* taps, int64_t first_pixel, int count) const;
  WindowList* make_windows(Scratch& own, int64_t first_pixel, int count) const;

  enum class Source { kInPlace, kShifted, kWindows };

  const ConvolutionSpec& spec_;
  const PackedWeights& weights_;
  const KernelSet& kernels_;
  ConvolutionCall call_;
  int64_t in_pixels_, out_pixels_;
  bool x_tiled_, y_tiled_;
  Source source_;
  size_t tiles_, splits_;
};

}  // namespace onnxprune
