#include "packed.h"

#include <algorithm>
#include <cstring>

namespace onnxprune {
namespace {

constexpr size_t kChunkRows = 128;
// 32 KiB of slab, or 48 KiB where rows have few entries in a block. Measured between 64 and 1024:
// smaller blocks pass sums through the cache more often, larger ones leave its first level.
constexpr size_t kBlockColumns = 128, kSparseBlockColumns = 192;
// In blocked weights each load serves four rows, so that the second level is fast enough.
constexpr size_t kBlockedColumns = 512;
constexpr double kSparse = 0.07;
// A little more than one block, as the 147 columns of a first layer, is one.
static_assert(kSparseBlockColumns * 5 / 4 <= 256, "entries hold rows of a slab in a byte");

size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

}  // namespace

void PackedWeights::put(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  words_.push_back(bits);
}

PackedWeights::PackedWeights(const SparseMatrix& matrix, size_t taps, bool contiguous, int block,
                             const KernelSet& kernels)
    : kernels_(kernels),
      rows_(matrix.rows),
      nonzeros_(size_t(matrix.row_starts[matrix.rows])),
      blocked_(block == 4) {
  std::vector<char> used(matrix.columns, contiguous);
  for (size_t i = 0; i < nonzeros_; ++i) used[matrix.column_of[i]] = 1;
  for (size_t column = 0; column < matrix.columns; ++column) {
    if (used[column]) slab_.push_back({uint32_t(column / taps), uint32_t(column % taps)});
  }
  const double density =
      double(nonzeros_) / (double(rows_) * double(std::max<size_t>(1, slab_.size())));
  const size_t block_columns = blocked_            ? kBlockedColumns
                               : density < kSparse ? kSparseBlockColumns
                                                   : kBlockColumns;
  const size_t blocks = slab_.size() <= block_columns * 5 / 4
                            ? 1
                            : ceil_div(slab_.size(), block_columns);
  const size_t chunks = std::max<size_t>(1, ceil_div(rows_, kChunkRows));
  for (size_t b = 0; b <= blocks; ++b) block_starts_.push_back(slab_.size() * b / blocks);
  for (size_t b = 0; b < blocks; ++b) {
    largest_block_ = std::max(largest_block_, block_starts_[b + 1] - block_starts_[b]);
    // What borders cut off is the same for all channels of a tap, so it is looked up once.
    std::stable_sort(slab_.begin() + ptrdiff_t(block_starts_[b]),
                     slab_.begin() + ptrdiff_t(block_starts_[b + 1]),
                     [](const SlabRow& x, const SlabRow& y) { return x.tap < y.tap; });
  }
  std::vector<int32_t> slab_row_of(matrix.columns, -1);
  for (size_t row = 0; row < slab_.size(); ++row) {
    slab_row_of[slab_[row].channel * taps + slab_[row].tap] = int32_t(row);
  }
  for (size_t c = 0; c <= chunks; ++c) {
    const size_t start = c == chunks ? rows_ : rows_ * c / chunks / 4 * 4;
    chunk_starts_.push_back(uint32_t(start));
  }
  words_.reserve(nonzeros_ * 2 + nonzeros_ / 8);
  for (size_t c = 0; c < chunks; ++c) {
    for (size_t b = 0; b < blocks; ++b) {
      const size_t group = groups_.size(), entry = words_.size();
      const bool all_rows = b == 0 || b + 1 == blocks;
      if (blocked_) {
        add_blocked_groups(matrix, slab_row_of, c, b, all_rows);
      } else {
        add_groups(matrix, slab_row_of, c, b, all_rows);
      }
      parts_.push_back({group, groups_.size() - group, entry});
    }
  }
  words_.shrink_to_fit();
  groups_.shrink_to_fit();
}

const SlabRow* PackedWeights::block(size_t index, size_t* size) const {
  *size = block_starts_[index + 1] - block_starts_[index];
  return slab_.data() + block_starts_[index];
}

void PackedWeights::multiply(size_t block, size_t from, size_t to, BlockWork work,
                             const Target& target) const {
  work.first_row = chunk_starts_[from];
  work.first = block == 0;
  work.last = work.last && block + 1 == block_count();
  for (size_t chunk = from; chunk < to; ++chunk) {
    const Part& part = parts_[chunk * block_count() + block];
    work.groups = groups_.data() + part.group;
    work.group_count = part.group_count;
    work.entries = words_.data() + part.entry;
    if (chunk > from) work.ahead_floats = 0;
    (blocked_ ? kernels_.blocked : kernels_.unstructured)(work, target);
  }
}

void PackedWeights::add_groups(const SparseMatrix& matrix, const std::vector<int32_t>& slab_row_of,
                               size_t chunk, size_t block, bool all_rows) {
  struct Run {
    uint32_t row;
    std::vector<std::pair<uint32_t, float>> entries;
  };
  const auto low = int32_t(block_starts_[block]), high = int32_t(block_starts_[block + 1]);
  std::vector<Run> runs;
  for (uint32_t row = chunk_starts_[chunk]; row < chunk_starts_[chunk + 1]; ++row) {
    Run run{row, {}};
    for (int32_t i = matrix.row_starts[row]; i < matrix.row_starts[row + 1]; ++i) {
      const int32_t k = slab_row_of[matrix.column_of[i]];
      if (k < low || k >= high) continue;
      run.entries.push_back({uint32_t(k - low), matrix.values[i]});
    }
    if (all_rows || !run.entries.empty()) runs.push_back(std::move(run));
  }
  std::stable_sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) {
    return a.entries.size() > b.entries.size();
  });
  size_t rows;
  for (size_t at = 0; at < runs.size(); at += rows) {
    const size_t length = runs[at].entries.size();
    const bool four = kernels_.group_rows == 4 && runs.size() - at >= 4;
    // A row without entries may not read what others do: NaN times zero is not zero.
    rows = four && (length == 0 || !runs[at + 3].entries.empty()) ? 4 : 1;
    Group group{{0, 0, 0, 0}, uint32_t(rows), uint32_t(length)};
    for (size_t r = 0; r < rows; ++r) {
      group.row[r] = runs[at + r].row;
      // A weight of zero on a pixel that the row reads anyway changes nothing.
      auto& entries = runs[at + r].entries;
      if (!entries.empty()) entries.resize(length, {entries.back().first, 0.0f});
    }
    groups_.push_back(group);
    for (size_t i = 0; i < length; ++i) {
      if (rows == 4) {
        uint32_t slab_rows = 0;
        for (size_t r = 0; r < 4; ++r) slab_rows |= runs[at + r].entries[i].first << 8 * r;
        put(slab_rows);
      } else {
        put(runs[at].entries[i].first);
      }
      for (size_t r = 0; r < rows; ++r) put(runs[at + r].entries[i].second);
    }
  }
}

void PackedWeights::add_blocked_groups(const SparseMatrix& matrix,
                                       const std::vector<int32_t>& slab_row_of, size_t chunk,
                                       size_t block, bool all_rows) {
  struct Column {
    uint32_t slab_row;
    float values[4];
  };
  struct Run {
    uint32_t row;
    std::vector<Column> columns;
  };
  const auto low = int32_t(block_starts_[block]), high = int32_t(block_starts_[block + 1]);
  std::vector<Run> runs;
  for (uint32_t row = chunk_starts_[chunk]; row < chunk_starts_[chunk + 1]; row += 4) {
    std::vector<std::pair<int32_t, Column>> found;
    for (uint32_t r = 0; r < 4; ++r) {
      for (int32_t i = matrix.row_starts[row + r]; i < matrix.row_starts[row + r + 1]; ++i) {
        const int32_t k = slab_row_of[matrix.column_of[i]];
        if (k < low || k >= high) continue;
        Column column{uint32_t(k - low), {0, 0, 0, 0}};
        column.values[r] = matrix.values[i];
        found.push_back({k, column});
      }
    }
    std::stable_sort(found.begin(), found.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    Run run{row, {}};
    for (size_t i = 0; i < found.size(); ++i) {
      if (i == 0 || found[i].first != found[i - 1].first) run.columns.push_back(found[i].second);
      for (int r = 0; r < 4; ++r) {
        if (found[i].second.values[r] != 0) run.columns.back().values[r] = found[i].second.values[r];
      }
    }
    if (all_rows || !run.columns.empty()) runs.push_back(std::move(run));
  }
  std::stable_sort(runs.begin(), runs.end(), [](const Run& a, const Run& b) {
    return a.columns.size() > b.columns.size();
  });
  for (const Run& run : runs) {
    groups_.push_back({{run.row, run.row + 1, run.row + 2, run.row + 3},
                       4,
                       uint32_t(run.columns.size())});
    for (const Column& column : run.columns) {
      put(column.slab_row);
      for (float value : column.values) put(value);
    }
  }
}

}  // namespace onnxprune
