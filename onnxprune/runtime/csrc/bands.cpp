#include "bands.h"

#include <algorithm>

namespace onnxprune {
namespace {

// Kernels compute so many rows at a time, since neighbours meet the same input.
constexpr int64_t kRowsTogether = 4;
// A third to a half of the first-level cache.
constexpr int64_t kBandFloats = 3072;

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

}  // namespace

bool Bands::suit(const WindowSpec& window) {
  return in_bands(window.kernel[0]) && window.strides[0] <= 2 && window.strides[1] <= 2 &&
         (window.dilations[0] == 1 || window.kernel[0] == 1);
}

Bands::Bands(const WindowSpec& window, int64_t height, int64_t width, int vector_width)
    : window_(window),
      height_(height),
      width_(width),
      out_height_(window.output_size(0, height)),
      out_width_(window.output_size(1, width)) {
  const int64_t down = window.strides[0], right = window.strides[1], left = window.pads[1];
  const int64_t reach = (window.kernel[1] - 1) * window.dilations[1];
  const int64_t read = (out_width_ - 1) * right + reach + 1;
  // The padding behind a row is also that before the next one.
  pitch_ = right == 1 ? width + std::max(left, read - left - width)
                      : (std::max(read, left + width) + 1) / 2;
  // Rows of the image begin at whole vectors: others would lie on two cache lines each.
  pitch_ = round_up(pitch_, vector_width);
  lead_ = (vector_width - left / right % vector_width) % vector_width;
  const int64_t whole = round_up(out_height_, kRowsTogether);
  const int64_t fit = (kBandFloats / (pitch_ * right) - window.kernel[0]) / down + 1;
  rows_ = std::min(whole, std::max(kRowsTogether, fit / kRowsTogether * kRowsTogether));
  row_planes_ = size_t(down);
  slack_ = round_up(2 * vector_width + reach, vector_width);
  const int64_t plane_rows = rows_ - 1 + (window.kernel[0] + down - 1) / down;
  column_plane_ = plane_rows * pitch_ + slack_;
  if (out_height_ == 1) column_plane_ += kRowsTogether * vector_width;  // vectors of one row
  row_plane_ = column_plane_ * right;
  for (int64_t k = 0; k < window.kernel[1]; ++k) {
    const int64_t column = k * window.dilations[1];
    columns_.push_back(ptrdiff_t(column % right * column_plane_ + column / right));
  }
}

Band Bands::band(const float* memory, int64_t number) const {
  Band band{};
  band.memory = memory + lead_;
  band.pitch = pitch_;
  band.row_plane = row_plane_;
  band.columns = columns_.data();
  band.kernel_rows = int(window_.kernel[0]);
  band.kernel_columns = int(window_.kernel[1]);
  band.row_planes = int(row_planes_);
  band.width = int(out_width_);
  band.rows = int(std::min(rows_, out_height_ - number * rows_));
  band.first_row = number * rows_;
  return band;
}

std::pair<int64_t, int64_t> Bands::input_rows(int64_t number) const {
  const int64_t rows = std::min(rows_, out_height_ - number * rows_);
  const int64_t first = number * rows_ * window_.strides[0] - window_.pads[0];
  const int64_t end = first + (rows - 1) * window_.strides[0] + window_.kernel[0];
  const int64_t from = std::min(std::max<int64_t>(first, 0), height_);
  return {from, std::max(from, std::min(end, height_))};
}

void Bands::fill(const KernelSet& kernels, const float* rows_from, int64_t row, int64_t number,
                 float* memory) const {
  const int64_t down = window_.strides[0];
  const int64_t rows = std::min(rows_, out_height_ - number * rows_);
  for (int64_t plane = 0; plane < down; ++plane) {
    const int64_t taps = (window_.kernel[0] - plane + down - 1) / down;
    if (taps <= 0) continue;
    float* to = memory + lead_ + plane * row_plane_;
    const int64_t count = rows - 1 + taps;
    // Row i of the plane is row `first + i * down` of the image.
    const int64_t first = number * rows_ * down + plane - window_.pads[0];
    const int64_t from = first >= 0 ? 0 : std::min(count, (-first + down - 1) / down);
    const int64_t room = height_ - first;
    const int64_t end = std::max(from, std::min(count, room <= 0 ? 0 : (room + down - 1) / down));
    clear_rows(from, to);
    fill_rows(kernels, rows_from + (first + from * down - row) * width_, from, end - from, to);
    clear_rows(count - end, to + end * pitch_);
  }
}

void Bands::fill_rows(const KernelSet& kernels, const float* source, int64_t first, int64_t count,
                      float* to) const {
  if (count <= 0) return;
  const ptrdiff_t pitch = window_.strides[0] * width_;
  const int64_t left = window_.pads[1];
  to += first * pitch_;
  if (window_.strides[1] == 1) {
    kernels.copy_rows(source, pitch, size_t(count), size_t(width_), to + left, pitch_);
    return;
  }
  const auto at = [&](int64_t column) { return to + column % 2 * column_plane_ + column / 2; };
  kernels.part_columns(source, pitch, size_t(count), size_t(width_), at(left), at(left + 1),
                       pitch_);
}

void Bands::clear_rows(int64_t count, float* to) const {
  const int64_t right = window_.strides[1];
  const int64_t from = right == 1 ? window_.pads[1] : 0;
  const int64_t size = right == 1 ? width_ : pitch_;
  for (int64_t plane = 0; plane < right; ++plane) {
    for (int64_t row = 0; row < count; ++row) {
      float* const start = to + plane * column_plane_ + row * pitch_ + from;
      std::fill(start, start + size, 0.0f);
    }
  }
}

}  // namespace onnxprune
