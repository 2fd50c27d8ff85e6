#pragma once

#include <cstdint>

namespace dkn {

// View of a row-major matrix [n, d]; row i belongs to neuron i.
template <typename T>
struct Rows {
    const T* data;
    std::int64_t n;
    std::int64_t d;

    const T* row(std::int64_t i) const { return data + i * d; }
};

// Throws std::invalid_argument unless the matrix is [n, d], a row for each neuron, and finite.
template <typename T>
void check_rows(const char* name, Rows<T> matrix, std::int64_t n, std::int64_t d);

}  // namespace dkn
