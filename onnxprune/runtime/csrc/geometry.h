// Which input pixels the taps of a convolution meet.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "scratch.h"

namespace onnxprune {

// What a convolution's node says of its window. One-dimensional ones have a height of 1.
struct WindowSpec {
  int64_t kernel[2] = {1, 1};
  int64_t strides[2] = {1, 1};
  int64_t pads[4] = {0, 0, 0, 0};  // top, left, bottom, right
  int64_t dilations[2] = {1, 1};

  size_t taps() const { return size_t(kernel[0] * kernel[1]); }
  bool pointwise() const {
    return kernel[0] * kernel[1] * strides[0] * strides[1] == 1 &&
           pads[0] + pads[1] + pads[2] + pads[3] == 0;
  }
  int64_t output_size(int axis, int64_t input_size) const {
    const int64_t reach = dilations[axis] * (kernel[axis] - 1) + 1;
    const int64_t room = input_size + pads[axis] + pads[axis + 2] - reach;
    return room < 0 ? 0 : room / strides[axis] + 1;
  }
};

// One convolution of one image size.
class Geometry {
 public:
  // With `tiled`, the input is stored tile by tile.
  Geometry(const WindowSpec& spec, int64_t channels, int64_t height, int64_t width, bool tiled);

  int64_t in_pixels() const { return height_ * width_; }
  int64_t out_pixels() const { return out_height_ * out_width_; }
  bool x_tiled() const { return tiled_; }

  // Whether neighbouring output pixels meet neighbouring input pixels at each tap: of the input
  // itself, or, where the convolution has strides, of its phases. A phase holds every second (third,
  // …) row and column; the phases of a channel lie one after another, `phase_size` floats each.
  bool shifts_suffice() const { return shifts_suffice_; }
  bool phased() const { return phased_; }
  size_t phase_count() const { return phases_.size(); }
  ptrdiff_t phase_size() const { return ptrdiff_t(phase_rows_ * out_width_); }

  // Writes the phases of one channel.
  void split(const KernelSet& kernels, const float* channel, float* phases) const;

  // What the taps of a tile meet; in the scratch memory, until the next call.
  const Shift* shifts(Scratch& scratch, int64_t tile) const;
  const WindowList* windows(Scratch& scratch, int64_t tile, int vector_width) const;

 private:
  using Bits = std::vector<uint64_t>;

  struct Phase {
    int64_t row, column;
  };

  void mark_borders();
  size_t phase_of(int64_t row, int64_t column);

  WindowSpec spec_;
  int64_t channels_, height_, width_, out_height_, out_width_;
  bool tiled_, phased_, shifts_suffice_;
  int64_t phase_rows_;
  std::vector<Phase> phases_;
  std::vector<ptrdiff_t> tap_shifts_;  // from the output pixel's place
  // For each row (column) of the kernel, the output pixels for which it lies inside the image.
  std::vector<Bits> rows_inside_, columns_inside_;
};

}  // namespace onnxprune
