"""How long the question-only baseline takes at VQA v2's size, and how much memory it needs.

    python benchmarks/question_only_baseline.py [--rows 443757] [--answers 3129]

Questions are drawn: a kind of question, of which a few are frequent and most are rare, and words of a vocabulary as
unevenly used as a language's, so that about half of them occur once. The answer is drawn by the kind, most often one of
its own few. `--tiny` tries the script out and records nothing.
"""

import argparse
import random
import resource
import time

from _record import provenance, write

from dual_distill.evaluation import majority_answer, question_only_baseline

TEST_ROWS = 20_000


def main() -> None:
    """Draw rows, fit and answer, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=443_757, help="training rows (default: those of VQA v2)")
    parser.add_argument("--answers", type=int, default=3_129, help="classes (default: those of VQA v2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.tiny:
        options.rows, options.answers = 2_000, 50

    source = provenance() | {"seed": options.seed}
    texts, labels = draw_rows(options.rows + (TEST_ROWS if not options.tiny else 500), options.answers, options.seed)
    train, test = slice(options.rows), slice(options.rows, None)
    before, start, cpu = peak_mb(), time.perf_counter(), time.process_time()
    found = question_only_baseline(texts[train], labels[train], texts[test], labels[test], options.seed)

    majority = majority_answer(labels[train])
    result = {
        "rows": options.rows,
        "different_questions": len(set(texts[train])),
        "answers": len(set(labels[train])),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mb": round(peak_mb()),
        "of_these_before_it_mb": round(before),
        "method": found.method,
        "accuracy": round(found.accuracy, 4),
        "majority": round(labels[test].count(majority) / len(labels[test]), 4),
    }
    print(result)
    if options.tiny:
        print("tiny: nothing is recorded")
    else:
        write("question_only_baseline", result, source)


def draw_rows(number: int, num_answers: int, seed: int) -> tuple[list[str], list[str]]:
    """Questions with answers."""
    rng = random.Random(seed)
    words = [f"word{index}" for index in range(12_000)]
    uneven = [1 / (rank + 5) for rank in range(len(words))]
    kinds = [
        (" ".join(rng.choices(words, uneven, k=rng.randint(2, 4))), rng.sample(range(num_answers), 8))
        for _ in range(400)
    ]
    chosen = rng.choices(kinds, [1 / (rank + 2) for rank in range(len(kinds))], k=number)

    texts, labels = [], []
    for kind, own in chosen:
        texts.append(" ".join([kind, *rng.choices(words, uneven, k=rng.randint(1, 4))]))
        is_own = rng.random() < 0.7
        labels.append(f"answer {own[min(int(rng.expovariate(1)), 7)] if is_own else rng.randrange(num_answers)}")
    return texts, labels


def peak_mb() -> float:
    """Largest memory of this process so far, in MB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
