"""What attribution of TempLAMA should cost on one H100: a calculation, nothing is measured.

    python -m benchmarks.kernels.estimate

Operations and bytes follow from shapes; each part takes the longer of arithmetic and memory, at an
assumed share of the card's peak. ``docs/kernels.md`` explains the terms.
"""

from __future__ import annotations

from dataclasses import dataclass

# H100 SXM by its data sheet, dense: 16-bit tensor cores, tf32 tensor cores, float32, memory.
PEAK_16, PEAK_TF32, PEAK_32, PEAK_BYTES = 989e12, 494e12, 67e12, 3.35e12
# Assumed.
ARITHMETIC, BANDWIDTH = 0.4, 0.7
SECONDS_PER_LAUNCH, LAUNCHES_PER_LAYER = 10e-6, 80  # eager torch; forward and backward, twice
POINTS, ROUNDS, FACTS_PER_CHUNK = 4.3, 2, 8  # points a layer: more than on the demo model

# TempLAMA's training file: 10,693 entries, 2,832 of them with a blank not at the end.
FACTS = 7861
PROMPT, ANSWER = 8.9, 4.4  # mean tokens by the demo model's tokenizer, and a BOS


@dataclass(frozen=True)
class Shape:
    layers: int
    d: int
    f: int
    v: int
    gated: bool
    size: int  # bytes a number

    @property
    def layer(self) -> float:
        """Weights of a layer's projections."""
        return 4 * self.d**2 + (3 if self.gated else 2) * self.d * self.f


MODELS = {
    "LLaMA-2-7B, bfloat16": Shape(32, 4096, 11008, 32000, True, 2),
    "GPT-2, float32": Shape(12, 768, 3072, 50257, False, 4),
}
# Beside it there are measurements, on the CPU: benchmarks/results/memory.csv.
MEASURED = {"SmolLM2-135M, float32": Shape(30, 576, 1536, 49152, True, 4)}


@dataclass(frozen=True)
class Part:
    """Of one fact: floating-point operations, bytes of memory, and the arithmetic's peak."""

    name: str
    flop: float
    bytes: float
    peak: float

    @property
    def seconds(self) -> float:
        return max(self.flop / (ARITHMETIC * self.peak), self.bytes / (BANDWIDTH * PEAK_BYTES))


def row_layers(m: Shape) -> float:
    """Rows times layers above each point and under the clean rows, for all answer tokens."""
    return ANSWER * (POINTS * m.layers * (m.layers - 1) / 2 + m.layers)


def parts(m: Shape) -> list[Part]:
    """Everything a fact costs, the model's own layers first; ``pre`` and ``post`` both listed."""
    plain = PEAK_16 if m.size == 2 else PEAK_32
    exact = PEAK_TF32 / 3 if m.size == 2 else PEAK_32
    row_layer, points, top = row_layers(m), ANSWER * POINTS, ANSWER * POINTS * m.layers
    per_chunk = m.layers * ROUNDS / FACTS_PER_CHUNK  # launches over a layer, a fact
    w_out = per_chunk * m.d * m.f * m.size
    clean = PROMPT + ANSWER + PROMPT * (PROMPT + 1) / 2 + PROMPT * (ANSWER - 1)
    weights = per_chunk * m.layer * m.size
    blocks = -(-m.v // 8192)
    return [
        Part("model: clean and masked prompts", 2 * clean * m.layers * m.layer, weights, plain),
        Part("model: layers over rows", 4 * row_layer * m.layer, 2 * weights, plain),
        Part("prefix_attention", 14 * row_layer * PROMPT * m.d, row_layer * m.d * _moved(m), plain),
        Part(
            "answer_probability",
            4 * top * m.d * m.v,
            2 * top * m.v * m.size
            + blocks * 8 * top * m.d
            + 2 * m.v * m.d * m.size * ROUNDS / FACTS_PER_CHUNK,
            plain,
        ),
        Part(
            "ig_accumulate, post",
            4 * m.layers * ANSWER * m.d * m.f,
            w_out + m.layers * (points * m.d * m.size + ANSWER * 2 * (4 * m.d + 4 * m.f)),
            exact,
        ),
        Part(
            "ig_accumulate, pre",
            2 * m.layers * points * m.d * m.f,
            w_out + m.layers * (points * m.d * m.size + ANSWER * m.f * 24),
            plain,
        ),
        Part(
            "path_activation, pre",
            10 * m.layers * points * m.f,
            m.layers * points * m.f * (12 + (m.size if m.gated else 0)),
            PEAK_32,
        ),
    ]


def _moved(m: Shape) -> int:
    """Bytes of a row's attention, for each of d: q, k, v, out forward; those and their gradients
    but one backward; in 16 bits also the result in float32, written and read."""
    return 11 * m.size + (8 if m.size == 2 else 0)


# What one batch may hold for its backward pass with rows_per_batch="auto", as in the engine.
BUDGET = 1 << 30
ROWS = (64, 256, 1024, 4096)
TOKENS = round(FACTS_PER_CHUNK * (PROMPT + ANSWER))  # of a chunk


def row_bytes(m: Shape) -> float:
    """Kept for the backward pass by a row that enters at a layer in the middle.

    About 12 d + 6 F numbers in each layer above: norms, q, k, v, attention's result, two residual
    sums; gate, up, their product and its factors.
    """
    return (12 * m.d + 6 * m.f) * m.size * m.layers / 2


def fixed_bytes(m: Shape) -> float:
    """What a chunk holds whatever the rows: clean activations, keys and values, scores."""
    clean = TOKENS * m.layers * (3 * m.d + 2 * m.f) * m.size
    contexts = FACTS_PER_CHUNK * ANSWER
    # Activation and baseline of each answer token; float32 scores by two rules.
    return clean + contexts * m.layers * m.f * (2 * m.size + 2 * 4)


def auto_rows(m: Shape) -> int:
    """What rows_per_batch="auto" takes."""
    return int(min(4096, max(64, BUDGET // row_bytes(m))))


def memory(name: str) -> list[str]:
    """Lines of the table of bytes against rows_per_batch; the number of facts is not in it."""
    m = (MODELS | MEASURED)[name]
    head = f"  {'rows_per_batch':>14} {'kept for backward':>18} {'all above model':>16}  (MiB)"
    lines = [name, head]
    for rows in (*ROWS, auto_rows(m)):
        label = f"auto = {rows}" if rows not in ROWS else str(rows)
        kept = rows * row_bytes(m)
        # The head's block of 8,192 logits and the float32 sums beside it.
        block = rows * (8192 * m.size + 8 * m.d)
        total = kept + block + fixed_bytes(m)
        lines.append(f"  {label:>14} {kept / 2**20:18,.0f} {total / 2**20:16,.0f}")
    return lines


def report(name: str) -> list[str]:
    """Lines of the table of one model."""
    m = MODELS[name]
    lines = [f"{name}", f"  {'a fact':34} {'GFLOP':>9} {'MB':>9} {'ms':>8}"]
    for part in parts(m):
        milli = part.seconds * 1e3
        lines.append(
            f"  {part.name:34} {part.flop / 1e9:9.2f} {part.bytes / 1e6:9.1f} {milli:8.3f}"
        )
    host = ROUNDS * m.layers * LAUNCHES_PER_LAYER * SECONDS_PER_LAUNCH / FACTS_PER_CHUNK
    lines.append(f"  {'launches, beside the GPU':34} {'':9} {'':9} {host * 1e3:8.3f}")
    for site, other in (("post", "pre"), ("pre", "post")):
        gpu = sum(p.seconds for p in parts(m) if not p.name.endswith(f", {other}"))
        whole = max(gpu, host)
        total = f"{whole * 1e3:.1f} ms a fact, {FACTS * whole / 60:.1f} min for {FACTS:,} facts"
        lines.append(f"  {site}: {total} ({'GPU' if gpu > host else 'launches'} bound)")
    return lines


def main() -> int:
    for name in MODELS:
        print("\n".join(report(name)))
    print("\nBytes above the model against rows_per_batch")
    for name in (*MODELS, *MEASURED):
        print("\n".join(memory(name)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
