#include "rows.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <stdexcept>

namespace dkn {
namespace {

template <typename T>
bool is_finite(const T* row, std::int64_t d) {
    // x - x is 0 for finite x and nan otherwise; this form vectorises.
    std::int32_t bad = 0;
    for (std::int64_t k = 0; k < d; ++k) {
        bad += (row[k] - row[k]) == T{0} ? 0 : 1;
    }
    return bad == 0;
}

}  // namespace

template <typename T>
void check_rows(const char* name, Rows<T> matrix, std::int64_t n, std::int64_t d) {
    std::ostringstream message;
    if (matrix.n != n || matrix.d != d) {
        message << name << " must be [" << n << ", " << d << "], a row for each neuron; got ["
                << matrix.n << ", " << matrix.d << "]";
        throw std::invalid_argument(message.str());
    }
    for (std::int64_t i = 0; i < n; ++i) {
        const T* row = matrix.row(i);
        if (!is_finite(row, d)) {
            const T* first = std::find_if(row, row + d, [](T x) { return !std::isfinite(x); });
            message << name << " must be finite; got " << *first << " at [" << i << ", "
                    << (first - row) << "]";
            throw std::invalid_argument(message.str());
        }
    }
}

template void check_rows(const char*, Rows<float>, std::int64_t, std::int64_t);
template void check_rows(const char*, Rows<double>, std::int64_t, std::int64_t);

}  // namespace dkn
