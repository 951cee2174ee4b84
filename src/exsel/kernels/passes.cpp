// The projection, the scaling of rows, their gradients, and the scaling by a temperature that is computed on the way:
// one loop each over batches, tokens and key/value heads. The formulas are those of passes.py and reference.py; cpp.py
// compiles this file and packs the arguments.
//
// Rows whose numbers are of ordinary size, all but a few, need no unit vector: with p = y·v, (y·v̂) v̂ = (p / ‖v‖²) v,
// so that no root is waited for. The others take the way of passes.py, guards and all.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>

#ifdef __AVX2__
#include <immintrin.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

#define COLD __attribute__((noinline, cold))

namespace {

// ---- Blocks --------------------------------------------------------------------------------------------------------

// Rows are computed with in blocks of one register. (Wider ones compile to detours through memory.)
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

typedef float Floats __attribute__((vector_size(kBytes)));
typedef double Doubles __attribute__((vector_size(kBytes)));
typedef uint32_t Words __attribute__((vector_size(kBytes)));
typedef uint16_t Shorts __attribute__((vector_size(kBytes / 2)));

template <class To, class From>
inline To bits_of(From x) {
  static_assert(sizeof(To) == sizeof(From), "");
  To result;
  std::memcpy(&result, &x, sizeof result);
  return result;
}

template <class A>
using Block = std::conditional_t<std::is_same_v<A, double>, Doubles, Floats>;

template <class A>
constexpr int64_t kBlock = int64_t(kBytes / sizeof(A));

template <class A>
inline Block<A> block(const A* p) {
  Block<A> result;
  std::memcpy(&result, p, sizeof result);
  return result;
}

template <class A>
inline void put(A* p, Block<A> x) {
  std::memcpy(p, &x, sizeof x);
}

// By halves: compilers add the lanes of a sum one after the other unless told that the order of sums does not matter,
// and the second projection would not survive that.
template <class A>
inline A sum(Block<A> x) {
  typedef A Quarter __attribute__((vector_size(16)));
  Quarter parts[kBytes / 16];
  std::memcpy(parts, &x, sizeof x);
  for (int count = kBytes / 32; count > 0; count /= 2)
    for (int i = 0; i < count; i++) parts[i] += parts[i + count];
  if constexpr (sizeof(A) == 8) {
    return parts[0][0] + parts[0][1];
  } else {
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
  }
}

template <class A>
inline A dot(const A* a, const A* b, int64_t n) {
  Block<A> products = {};
  for (int64_t i = 0; i < n; i += kBlock<A>) products += block(a + i) * block(b + i);
  return sum<A>(products);
}

// ---- Number types: as they are stored, and as they are computed with -----------------------------------------------

template <class Number>
struct Plain {
  using Stored = Number;
  using Wide = Number;
  using StoredBlock = Block<Number>;
  static Block<Number> widen(Block<Number> x) { return x; }
  static Block<Number> narrow(Block<Number> x) { return x; }
};

using Float32 = Plain<float>;
using Float64 = Plain<double>;

#ifdef __AVX512F__  // GCC takes a detour over half registers
inline Words to_words(Shorts x) { return Words(_mm512_cvtepu16_epi32(__m256i(x))); }
inline Shorts to_shorts(Words x) { return Shorts(_mm512_cvtepi32_epi16(__m512i(x))); }
#else
inline Words to_words(Shorts x) { return __builtin_convertvector(x, Words); }
inline Shorts to_shorts(Words x) { return __builtin_convertvector(x, Shorts); }
#endif

inline Words where(Words mask, Words yes, Words no) { return (mask & yes) | (~mask & no); }

struct BFloat16 {
  using Stored = uint16_t;
  using Wide = float;
  using StoredBlock = Shorts;
  static Floats widen(Shorts x) { return bits_of<Floats>(to_words(x) << 16); }
  static Shorts narrow(Floats x) {
    const Words wide = bits_of<Words>(x), nearest_even = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    return to_shorts(where(Words(x != x), Words{} + 0x7fc0, nearest_even));  // a carry could end NaN
  }
};

struct Float16 {
  using Stored = uint16_t;
  using Wide = float;
  using StoredBlock = Shorts;
#if defined(__AVX512F__)
  static Floats widen(Shorts x) { return Floats(_mm512_cvtph_ps(__m256i(x))); }
  static Shorts narrow(Floats x) { return Shorts(_mm512_cvtps_ph(__m512(x), _MM_FROUND_TO_NEAREST_INT)); }
#elif defined(__AVX2__) && defined(__F16C__)
  static Floats widen(Shorts x) { return Floats(_mm256_cvtph_ps(__m128i(x))); }
  static Shorts narrow(Floats x) { return Shorts(_mm256_cvtps_ph(__m256(x), _MM_FROUND_TO_NEAREST_INT)); }
#else
  static Floats widen(Shorts x) {
    const Words narrow = to_words(x), magnitude = narrow & 0x7fff;
    const Words wide = bits_of<Words>(bits_of<Floats>(magnitude << 13) * 0x1p112f);
    const Words is_special = Words(magnitude >= 0x7c00);  // infinity and NaN
    return bits_of<Floats>(wide | (is_special & 0x7f800000) | (narrow & 0x8000) << 16);
  }
  static Shorts narrow(Floats x) {
    const Words wide = bits_of<Words>(x), magnitude = wide & 0x7fffffff;
    const Words normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    // Below the normal numbers: the sum with 1/2 has their spacing, and rounds to it.
    const Words tiny = bits_of<Words>(bits_of<Floats>(magnitude) + 0.5f) - 0x3f000000;
    const Words special = 0x7c00 | (Words(magnitude > 0x7f800000) & 0x200);  // infinity, from 65520 on; NaN
    const Words finite = where(Words(magnitude < 0x38800000), tiny, normal);
    const Words result = where(Words(magnitude >= 0x477ff000), special, finite) | ((wide >> 16) & 0x8000);
    return to_shorts(result);
  }
#endif
};

// ---- Arguments -----------------------------------------------------------------------------------------------------

// A tensor [batch, head, token, element], or [batch, head, token]; strides in elements. No data: not given.
struct View {
  void* data;
  int64_t batch, head, token, element;

  template <class Stored>
  Stored* at(int64_t b, int64_t h, int64_t t) const {
    return data ? static_cast<Stored*>(data) + b * batch + h * head + t * token : nullptr;
  }
};

// All as packed by cpp.py; the pointers follow apart, since the rest is the same at each token.
struct Sizes {
  int64_t dtype, batches, heads, kv_heads, tokens, head_dim, threads, has_scalars, accumulate;
  double eps;
};

struct Arguments : Sizes {
  View x, own_value, strength, along;
  View out;                      // of the forward, which has no more
  View dout, dy, dv, dstrength;  // of the backward; accumulate: into what dv holds
};

// Weight [head, feature], position_logit [head] and position [batch, token], which are integers, stride 0 where one
// number is for all; no position_logit: without its term.
struct Temperature : Sizes {
  View x, features, weight, position_logit, position, out;
  int64_t feature_dim, is_double_exponential;
};

enum Dtype : int64_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// The numbers of one query head's token; null: not given.
template <class A>
struct Scalars {
  const A* strength = nullptr;
  A *along = nullptr, *dstrength = nullptr;

  Scalars(const Arguments& a, int64_t b, int64_t h, int64_t t) {
    if (!a.has_scalars) return;
    strength = a.strength.at<A>(b, h, t);
    along = a.along.at<A>(b, h, t);
    dstrength = a.dstrength.at<A>(b, h, t);
  }
};

// ---- Rows ----------------------------------------------------------------------------------------------------------

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// A row of n numbers, in whole blocks; N > 0: n, known when compiled.
template <class A, int N>
struct Row {
  static_assert(N % kBlock<A> == 0, "");
  alignas(64) A data[N];
  explicit Row(int64_t) {}
};

template <class A>
struct Row<A, 0> {
  A* data;
  explicit Row(int64_t n) : data(static_cast<A*>(std::malloc(size_t(round_up(n, kBlock<A>)) * sizeof(A)))) {
    if (!data) std::abort();
  }
  Row(const Row&) = delete;
  Row& operator=(const Row&) = delete;
  ~Row() { std::free(data); }
};

// Whether the row of n numbers can be computed with where it lies.
template <class T>
inline bool is_ready(int64_t stride, int64_t n) {
  return std::is_same_v<typename T::Stored, typename T::Wide> && stride == 1 && n % kBlock<typename T::Wide> == 0;
}

// Where a block cannot be moved at once: at the end of a row, or at a stride. Lanes past count are 0.
template <class Stored>
COLD void gather(const Stored* p, int64_t stride, int64_t count, int64_t lanes, Stored* to) {
  for (int64_t i = 0; i < lanes; i++) to[i] = i < count ? p[i * stride] : 0;
}

template <class Stored>
COLD void scatter(const Stored* from, int64_t count, int64_t lanes, Stored* p, int64_t stride) {
  for (int64_t i = 0; i < lanes && i < count; i++) p[i * stride] = from[i];
}

// The row of n numbers at p: itself, or a copy in the buffer with 0 past its end.
template <class T, class A>
inline const A* load(const typename T::Stored* p, int64_t stride, A* buffer, int64_t n) {
  if constexpr (std::is_same_v<typename T::Stored, A>)
    if (is_ready<T>(stride, n)) return p;
  for (int64_t i = 0; i < n; i += kBlock<A>) {
    typename T::StoredBlock stored;
    if (stride == 1 && i + kBlock<A> <= n) {
      std::memcpy(&stored, p + i, sizeof stored);
    } else {
      typename T::Stored part[kBlock<A>];
      gather(p + i * stride, stride, n - i, kBlock<A>, part);
      std::memcpy(&stored, part, sizeof stored);
    }
    put(buffer + i, T::widen(stored));
  }
  return buffer;
}

// Where to compute the row that belongs at p, from where store() brings it there.
template <class T, class A>
inline A* target(typename T::Stored* p, int64_t stride, A* buffer, int64_t n) {
  if constexpr (std::is_same_v<typename T::Stored, A>)
    if (is_ready<T>(stride, n)) return p;
  return buffer;
}

template <class T, class A>
inline void store(typename T::Stored* p, int64_t stride, const A* row, int64_t n) {
  if (is_ready<T>(stride, n)) return;
  for (int64_t i = 0; i < n; i += kBlock<A>) {
    const typename T::StoredBlock stored = T::narrow(block(row + i));
    if (stride == 1 && i + kBlock<A> <= n) {
      std::memcpy(p + i, &stored, sizeof stored);
    } else {
      typename T::Stored part[kBlock<A>];
      std::memcpy(part, &stored, sizeof stored);
      scatter(part, n - i, kBlock<A>, p + i * stride, stride);
    }
  }
}

template <class A>
constexpr A power_of_two(int exponent) {
  A result = 1;
  for (; exponent > 0; exponent--) result *= 2;
  for (; exponent < 0; exponent++) result /= 2;
  return result;
}

// ---- Rows of any size ----------------------------------------------------------------------------------------------

// Sums run over 2⁻⁸ v̂ and products use 2⁸ v̂, so that y·v̂ may exceed the largest float where z does not.
template <class A>
constexpr A kSmall = A(0x1p-8);
template <class A>
constexpr A kLargeOverSmall = A(0x1p16);

template <class A>
struct Direction {
  A length;   // 2⁻⁸ max(‖v‖, eps)
  A is_unit;  // 1 where ‖v‖ > eps, else 0
};

// Writes 2⁻⁸ v̂.
template <class A>
Direction<A> direction(const A* v, int64_t n, A eps, A* unit) {
  constexpr int exponent = sizeof(A) == 8 ? 1024 : 128;
  // Scaled by a power of two where squares could overflow or vanish.
  A largest = 0, scale = 1, squares = 0;
  for (int64_t i = 0; i < n; i++) largest = std::abs(v[i]) > largest ? std::abs(v[i]) : largest;
  if (largest > power_of_two<A>(exponent * 3 / 8)) {
    scale = power_of_two<A>(-exponent * 5 / 8);
  } else if (largest < power_of_two<A>(-exponent * 5 / 16)) {
    scale = power_of_two<A>(exponent / 2);
  }
  for (int64_t i = 0; i < n; i++) squares += (v[i] * scale) * (v[i] * scale);
  const A norm = std::sqrt(squares), floor = eps * scale;
  const A length = norm <= floor ? floor : norm;  // so that NaN stays NaN
  for (int64_t i = 0; i < n; i++) unit[i] = v[i] * scale * (kSmall<A> / length);
  return {length * (kSmall<A> / scale), A(norm > floor)};
}

// Writes z = y − α c v̂, c being 2⁻⁸ y·v̂.
template <class A>
void exclude(const A* y, const A* unit, A is_unit, A c, const A* strength, A* z, int64_t n) {
  // The projection acts twice: the second removes what rounding left of v̂ in the first, by 2 − ‖v̂‖² ≈ 1/‖v̂‖² for a
  // v̂ that rounding made too long or too short.
  for (int64_t i = 0; i < n; i++) z[i] = y[i] - kLargeOverSmall<A> * unit[i] * c;
  A left = -dot(z, unit, n) * (2 - dot(unit, unit, n) * kLargeOverSmall<A>) * is_unit;
  if (strength) left = *strength * left + (1 - *strength) * c;
  for (int64_t i = 0; i < n; i++) z[i] += kLargeOverSmall<A> * unit[i] * left;
}

// Infinity would become NaN in the backward, times 0.
template <class A>
A finite(A x) {
  constexpr A largest = sizeof(A) == 8 ? A(0x1.fffffffffffffp1023) : A(0x1.fffffep127);
  return x > largest ? largest : x < -largest ? -largest : x;
}

template <class A>
COLD void project_any(const A* y, const A* v, int64_t n, A eps, const Scalars<A>& of, A* z) {
  Row<A, 0> unit(n);
  const A is_unit = direction(v, n, eps, unit.data).is_unit, c = dot(y, unit.data, n);
  if (of.along) *of.along = finite(c / kSmall<A>);
  exclude(y, unit.data, is_unit, c, of.strength, z, n);
}

// Adds to dv, from 0 if is_first; no dy or dv: not wanted.
template <class A>
COLD void backward_any(const A* dz, const A* x, const A* v, int64_t n, A eps, const Scalars<A>& of, A* dy, A* dv,
                       bool is_first) {
  Row<A, 0> unit_row(n);
  A* const unit = unit_row.data;
  const auto [length, is_unit] = direction(v, n, eps, unit);
  const A alpha = of.strength ? *of.strength : 1;
  // c, s and length are 2⁻⁸ of themselves.
  const A s = dot(dz, unit, n), c = of.along ? *of.along * kSmall<A> : dot(x, unit, n);
  if (of.dstrength) *of.dstrength = -(c * s) * kLargeOverSmall<A>;
  // Below eps the norm is a constant and its derivative, the terms in v̂, is absent.
  const A taken = of.along ? c * (is_unit - alpha) : c * is_unit;
  for (int64_t i = 0; i < n; i++) {
    const A large = kLargeOverSmall<A> * unit[i];
    const A across_dz = large * (s * is_unit) - dz[i], across_x = large * taken - x[i];
    const A term = across_dz * (alpha * c / length) + across_x * (alpha * s / length);
    if (dv) dv[i] = is_first ? term : dv[i] + term;
    if (dy) dy[i] = dz[i] - large * (alpha * s);
  }
}

// ---- Rows of ordinary size -----------------------------------------------------------------------------------------

// Where ‖v‖² and the products with v lie within these, nothing overflows, vanishes, or meets eps.
template <class A>
struct Ordinary {
  static constexpr int exponent = sizeof(A) == 8 ? 1024 : 128;
  A least;

  explicit Ordinary(A eps) : least(power_of_two<A>(-exponent * 5 / 16)) {
    if (!(2 * eps * eps < least)) least = 2 * eps * eps;
  }
  bool squares(A x) const { return x > least && x < power_of_two<A>(exponent / 2); }
  static bool product(A x) { return std::abs(x) < power_of_two<A>(exponent * 5 / 8); }
};

// Writes y − k v and returns what more of v y − α k v needs: k v is projected out twice, as in exclude().
template <class A>
inline A exclude_ordinary(const A* y, const A* v, A k, A inverse, const A* strength, A* rest, int64_t n) {
  Block<A> products = {};
  for (int64_t i = 0; i < n; i += kBlock<A>) {
    const Block<A> once = block(y + i) - k * block(v + i);
    put(rest + i, once);
    products += once * block(v + i);
  }
  const A left = -inverse * sum<A>(products);
  return strength ? *strength * left + (1 - *strength) * k : left;
}

template <class A>
inline bool project_ordinary(const A* y, const A* v, int64_t n, A squares, A inverse, const Scalars<A>& of, A* rest,
                             A* z) {
  const A p = dot(y, v, n);
  if (__builtin_expect(!Ordinary<A>::product(p), 0)) return false;
  if (of.along) *of.along = p / std::sqrt(squares);
  const A left = exclude_ordinary(y, v, p * inverse, inverse, of.strength, rest, n);
  for (int64_t i = 0; i < n; i += kBlock<A>) put(z + i, block(rest + i) + left * block(v + i));
  return true;
}

// Adds to dv, from 0 if is_first; no dy or dv: not wanted.
template <class A>
inline bool backward_ordinary(const A* dz, const A* x, const A* v, int64_t n, A squares, A inverse,
                              const Scalars<A>& of, A* dy, A* dv, bool is_first) {
  const A alpha = of.strength ? *of.strength : 1;
  const A p = of.along ? *of.along * std::sqrt(squares) : dot(x, v, n), q = dot(dz, v, n);
  if (__builtin_expect(!(Ordinary<A>::product(p) && Ordinary<A>::product(q)), 0)) return false;
  const A of_y = p * inverse, of_dz = q * inverse;  // c / ‖v‖ and s / ‖v‖
  if (of.dstrength) *of.dstrength = -p * of_dz;
  const A taken = of.along ? of_y * (1 - alpha) : of_y, excluded = alpha * of_dz, times_dz = alpha * of_y;
  for (int64_t i = 0; i < n; i += kBlock<A>) {
    const Block<A> own = block(v + i), to_dz = block(dz + i);
    const Block<A> term = (of_dz * own - to_dz) * times_dz + (taken * own - block(x + i)) * excluded;
    if (dv) put(dv + i, is_first ? term : block(dv + i) + term);
    if (dy) put(dy + i, to_dz - excluded * own);
  }
  return true;
}

// ---- GELU ----------------------------------------------------------------------------------------------------------

inline Floats where(Floats if_not_zero, Floats yes, Floats no) {
  return bits_of<Floats>(where(bits_of<Words>(if_not_zero), bits_of<Words>(yes), bits_of<Words>(no)));
}

// eˣ for x in [−80, 0].
inline Floats exponential(Floats x) {
  // The sum's last bits are the integer nearest to x / log 2.
  const Floats shift = Floats{} + 0x1.8p23f, sum = x * 0x1.715476p0f + shift, whole = sum - shift;
  const Floats rest = (x - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
  Floats result = rest * 0x1.694p-10f + 0x1.125edcp-7f;
  for (const float coefficient : {0x1.555b5ap-5f, 0x1.55545p-3f, 0x1.fffff6p-2f, 1.0f, 1.0f})
    result = result * rest + coefficient;
  return result * bits_of<Floats>((bits_of<Words>(sum) << 23) + 0x3f800000);
}

// Within an ulp: a polynomial near 0, 1 − e^polynomial beyond. NaN stays NaN.
inline Floats error_function(Floats x) {
  const Floats square = x * x;
  Floats near = Floats{} - 0x1.38ep-11f;
  for (const float coefficient : {0x1.471a58p-8f, -0x1.b691b2p-6f, 0x1.ce1c44p-4f, -0x1.8127p-2f, 0x1.06eba8p-3f})
    near = near * square + coefficient;
  near = near * x + x;
  const Words sign = bits_of<Words>(x) & 0x80000000;
  const Floats size = bits_of<Floats>(bits_of<Words>(x) ^ sign), limit = Floats{} + 4;  // erf 4 rounds to 1
  const Floats t = where(Floats(size > limit), limit, size);
  Floats far = Floats{} - 0x1.22p-16f;
  for (const float coefficient :
       {0x1.91cfb2p-12f, -0x1.fd1438p-9f, 0x1.8d6342p-6f, -0x1.b55cb8p-4f, -0x1.450aap-1f, -0x1.079d0cp-3f})
    far = far * t + coefficient;
  far = 1 - exponential(far * t - t);
  return where(Floats(size > 0.927734375f), bits_of<Floats>(bits_of<Words>(far) | sign), near);
}

inline Doubles error_function(Doubles x) {
  for (int i = 0; i < kBlock<double>; i++) x[i] = std::erf(x[i]);
  return x;
}

template <class A>
inline Block<A> gelu(Block<A> x) {
  return A(0.5) * x * (1 + error_function(x * A(0x1.6a09e667f3bcdp-1)));
}

// ---- Loops ---------------------------------------------------------------------------------------------------------

// Calls body(b, kv, t) for the tokens from begin to end, in the order of x's memory.
template <class Body>
inline void over_tokens(const Sizes& a, const View& x, int64_t begin, int64_t end, Body body) {
  const bool heads_inside = x.head <= x.token;
  const int64_t inside = heads_inside ? a.kv_heads : a.tokens, middle = heads_inside ? a.tokens : a.kv_heads;
  int64_t inner = begin % inside, outer = begin / inside % middle, b = begin / inside / middle;
  for (int64_t index = begin; index < end; index++) {
    body(b, heads_inside ? inner : outer, heads_inside ? outer : inner);
    if (++inner == inside) {
      inner = 0;
      if (++outer == middle) {
        outer = 0;
        b++;
      }
    }
  }
}

// Calls chunk(begin, end) on each thread with its share of the tokens.
template <class Chunk>
inline void on_threads(const Sizes& a, Chunk chunk) {
  const int64_t rows = a.batches * a.tokens * a.kv_heads;
  if (rows == 0) return;
#ifdef _OPENMP
  if (a.threads > 1) {
#pragma omp parallel num_threads(int(a.threads))
    {
      const int64_t count = omp_get_num_threads(), number = omp_get_thread_num();
      chunk(rows * number / count, rows * (number + 1) / count);
    }
    return;
  }
#endif
  chunk(0, rows);
}

template <class T, int N>
void project_chunk(const Arguments& a, int64_t begin, int64_t end) {
  using A = typename T::Wide;
  using Stored = typename T::Stored;
  const int64_t n = N ? N : a.head_dim, whole = round_up(n, kBlock<A>), group = a.heads / a.kv_heads;
  const A eps = A(a.eps);
  const Ordinary<A> ordinary(eps);
  Row<A, N> v_row(n), y_row(n), z_row(n), rest(n);
  over_tokens(a, a.x, begin, end, [&](int64_t b, int64_t kv, int64_t t) {
    const A* const v = load<T>(a.own_value.at<const Stored>(b, kv, t), a.own_value.element, v_row.data, n);
    const A squares = dot(v, v, whole), inverse = 1 / squares;
    const bool is_ordinary = ordinary.squares(squares);
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
      const Scalars<A> of(a, b, h, t);
      const A* const y = load<T>(a.x.at<const Stored>(b, h, t), a.x.element, y_row.data, n);
      Stored* const out = a.out.at<Stored>(b, h, t);
      A* const z = target<T>(out, a.out.element, z_row.data, n);
      if (!is_ordinary || !project_ordinary(y, v, whole, squares, inverse, of, rest.data, z))
        project_any(y, v, whole, eps, of, z);
      store<T>(out, a.out.element, z, n);
    }
  });
}

template <class T, int N>
void backward_chunk(const Arguments& a, int64_t begin, int64_t end) {
  using A = typename T::Wide;
  using Stored = typename T::Stored;
  const int64_t n = N ? N : a.head_dim, whole = round_up(n, kBlock<A>), group = a.heads / a.kv_heads;
  const A eps = A(a.eps);
  const Ordinary<A> ordinary(eps);
  Row<A, N> v_row(n), x_row(n), dz_row(n), dy_row(n), dv_row(n);
  over_tokens(a, a.x, begin, end, [&](int64_t b, int64_t kv, int64_t t) {
    const A* const v = load<T>(a.own_value.at<const Stored>(b, kv, t), a.own_value.element, v_row.data, n);
    const A squares = dot(v, v, whole), inverse = 1 / squares;
    const bool is_ordinary = ordinary.squares(squares);
    Stored* const dv_out = a.dv.at<Stored>(b, kv, t);
    A* const dv = dv_out ? target<T>(dv_out, a.dv.element, dv_row.data, n) : nullptr;
    if (dv == dv_row.data && a.accumulate) load<T>(dv_out, a.dv.element, dv_row.data, n);
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
      const Scalars<A> of(a, b, h, t);
      const A* const x = load<T>(a.x.at<const Stored>(b, h, t), a.x.element, x_row.data, n);
      const A* const dz = load<T>(a.dout.at<const Stored>(b, h, t), a.dout.element, dz_row.data, n);
      Stored* const dy_out = a.dy.at<Stored>(b, h, t);
      A* const dy = dy_out ? target<T>(dy_out, a.dy.element, dy_row.data, n) : nullptr;
      const bool is_first = h == kv * group && !a.accumulate;
      if (!is_ordinary || !backward_ordinary(dz, x, v, whole, squares, inverse, of, dy, dv, is_first))
        backward_any(dz, x, v, whole, eps, of, dy, dv, is_first);
      if (dy) store<T>(dy_out, a.dy.element, dy, n);
    }
    if (dv) store<T>(dv_out, a.dv.element, dv, n);
  });
}

// out = τ x, τ being the strength; or given dout, dy = τ dout and dτ = dout·x.
template <class T, int N>
void scale_chunk(const Arguments& a, int64_t begin, int64_t end) {
  using A = typename T::Wide;
  using Stored = typename T::Stored;
  const int64_t n = N ? N : a.head_dim, whole = round_up(n, kBlock<A>);
  const View& to = a.dout.data ? a.dy : a.out;
  Row<A, N> x_row(n), dout_row(n), to_row(n);
  over_tokens(a, a.x, begin, end, [&](int64_t b, int64_t h, int64_t t) {
    const Scalars<A> of(a, b, h, t);
    const A* x = load<T>(a.x.at<const Stored>(b, h, t), a.x.element, x_row.data, n);
    if (a.dout.data) {
      const A* const dout = load<T>(a.dout.at<const Stored>(b, h, t), a.dout.element, dout_row.data, n);
      *of.dstrength = dot(dout, x, whole);
      x = dout;
    }
    Stored* const place = to.at<Stored>(b, h, t);
    A* const scaled = target<T>(place, to.element, to_row.data, n);
    const A tau = *of.strength;
    for (int64_t i = 0; i < whole; i += kBlock<A>) put(scaled + i, tau * block(x + i));
    store<T>(place, to.element, scaled, n);
  });
}

// out = τ x with τ = tanh(weight · GELU(features)) + 1 + c log position, c = σ(position_logit) or exp(−exp(position_logit)).
template <class T, int N>
void temperature_chunk(const Temperature& a, int64_t begin, int64_t end) {
  using A = typename T::Wide;
  using Stored = typename T::Stored;
  const int64_t n = N ? N : a.head_dim, whole = round_up(n, kBlock<A>);
  const int64_t num_features = N ? N : a.feature_dim, whole_features = round_up(num_features, kBlock<A>);
  Row<A, N> x_row(n), to_row(n), features_row(num_features), weight_row(num_features);
  over_tokens(a, a.x, begin, end, [&](int64_t b, int64_t h, int64_t t) {
    const Stored* const at = a.features.at<const Stored>(b, h, t);
    const A* const features = load<T>(at, a.features.element, features_row.data, num_features);
    const A* const weight =
        load<Plain<A>>(a.weight.at<const A>(0, h, 0), a.weight.element, weight_row.data, num_features);
    Block<A> products = {};
    for (int64_t i = 0; i < whole_features; i += kBlock<A>) products += gelu<A>(block(features + i)) * block(weight + i);
    A tau = std::tanh(sum<A>(products)) + 1;
    if (const A* const logit = a.position_logit.at<const A>(0, h, 0)) {
      const A coefficient = a.is_double_exponential ? std::exp(-std::exp(*logit)) : 1 / (1 + std::exp(-*logit));
      tau += coefficient * std::log(A(*a.position.at<const int64_t>(b, 0, t)));
    }
    const A* const x = load<T>(a.x.at<const Stored>(b, h, t), a.x.element, x_row.data, n);
    Stored* const place = a.out.at<Stored>(b, h, t);
    A* const scaled = target<T>(place, a.out.element, to_row.data, n);
    for (int64_t i = 0; i < whole; i += kBlock<A>) put(scaled + i, tau * block(x + i));
    store<T>(place, a.out.element, scaled, n);
  });
}

enum Pass { kProject, kProjectBackward, kScale };

template <class T, int N>
void run(const Arguments& a, Pass pass) {
  on_threads(a, [&](int64_t begin, int64_t end) {
    switch (pass) {
      case kProject: return project_chunk<T, N>(a, begin, end);
      case kProjectBackward: return backward_chunk<T, N>(a, begin, end);
      case kScale: return scale_chunk<T, N>(a, begin, end);
    }
  });
}

template <class T, int N>
void run(const Temperature& a) {
  on_threads(a, [&](int64_t begin, int64_t end) { temperature_chunk<T, N>(a, begin, end); });
}

inline bool is_of(const Arguments& a, int64_t n) { return a.head_dim == n; }
inline bool is_of(const Temperature& a, int64_t n) { return a.head_dim == n && a.feature_dim == n; }

template <class T, class All, class... Pass>
void choose_head_dim(const All& a, Pass... pass) {
  if constexpr (std::is_same_v<T, Float32> || std::is_same_v<T, BFloat16>) {  // each costs time to compile
    if (is_of(a, 64)) return run<T, 64>(a, pass...);
    if (is_of(a, 128)) return run<T, 128>(a, pass...);
  }
  run<T, 0>(a, pass...);
}

template <class All, class... Pass>
void choose_dtype(const void* layout, size_t size, void* const* pointers, int num_pointers, Pass... pass) {
  All a{};
  std::memcpy(&a, layout, size);
  for (int i = 0; i < num_pointers; i++) (&a.x)[i].data = pointers[i];
  switch (a.dtype) {
    case kFloat32: return choose_head_dim<Float32>(a, pass...);
    case kFloat64: return choose_head_dim<Float64>(a, pass...);
    case kBFloat16: return choose_head_dim<BFloat16>(a, pass...);
    case kFloat16: return choose_head_dim<Float16>(a, pass...);
  }
}

}  // namespace

extern "C" void exsel_project(const void* layout, void* const* pointers) {
  choose_dtype<Arguments>(layout, sizeof(Arguments) - 4 * sizeof(View), pointers, 5, kProject);
}
extern "C" void exsel_project_backward(const void* layout, void* const* pointers) {
  choose_dtype<Arguments>(layout, sizeof(Arguments), pointers, 9, kProjectBackward);
}
extern "C" void exsel_scale(const void* layout, void* const* pointers) {
  choose_dtype<Arguments>(layout, sizeof(Arguments), pointers, 9, kScale);
}
extern "C" void exsel_scale_by_temperature(const void* layout, void* const* pointers) {
  choose_dtype<Temperature>(layout, sizeof(Temperature), pointers, 6);
}
