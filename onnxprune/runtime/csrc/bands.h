// Channels of images as depthwise kernels read them: with their padding, columns and rows parted
// where the convolution has strides, so that every tap of every output pixel is a plain load.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "geometry.h"

namespace onnxprune {

// The rows of a channel, some at a time: what a band of output rows needs lies in the first-level
// cache.
class Bands {
 public:
  // `vector_width` are the floats of the kernels' vectors.
  Bands(const WindowSpec& window, int64_t height, int64_t width, int vector_width);

  // Whether a window can be read in this way.
  static bool suit(const WindowSpec& window);

  int64_t count() const { return (out_height_ + rows_ - 1) / rows_; }
  size_t floats() const { return row_planes_ * size_t(row_plane_) + size_t(lead_ + slack_); }

  // Where the memory, of `floats`, lies for the kernels, for one band of it.
  Band band(const float* memory, int64_t number) const;

  // The input rows that a band meets, from the first to beyond the last.
  std::pair<int64_t, int64_t> input_rows(int64_t number) const;

  // Copies the input rows of a band, of which `rows` holds those from `row` on. What lies between
  // rows stays: padding, set once.
  void fill(const KernelSet& kernels, const float* rows, int64_t row, int64_t number,
            float* memory) const;

 private:
  void fill_rows(const KernelSet& kernels, const float* source, int64_t first, int64_t count,
                 float* to) const;
  void clear_rows(int64_t count, float* to) const;

  WindowSpec window_;
  int64_t height_, width_, out_height_, out_width_;
  int64_t pitch_;         // floats from one row to the next
  int64_t lead_;          // floats before the first row
  int64_t column_plane_;  // from even to odd columns
  int64_t row_plane_;     // from even to odd rows
  int64_t slack_;
  size_t row_planes_;
  int64_t rows_;  // output rows of a band
  std::vector<ptrdiff_t> columns_;
};

}  // namespace onnxprune
