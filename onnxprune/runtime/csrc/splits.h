#pragma once

#include <cstddef>

#include "packed.h"

namespace onnxprune {

// Processors that this process may use; ONNX Runtime's interface does not tell how many threads a
// session has.
size_t processors();

// Into how many parts the rows of each tile are cut, so that all processors have work. Each part
// packs the tile's slab again, so there are no more than that is worth. `pack_cycles` is what one
// vector of the slab costs.
size_t row_splits(const PackedWeights& weights, size_t tiles, int pixels, double pack_cycles);

}  // namespace onnxprune
