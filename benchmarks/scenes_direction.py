"""Does a scenes model understand directions, or does it answer with any neighbour of the thing that is named?

    python benchmarks/scenes_direction.py CHECKPOINT [--seed 0]

Relation questions of the test split ("what colour is the thing left of the red circle?"), split by how many different
answers the neighbours of the named thing would give: where there is one, no direction is needed; where there are two, a
model that ignores the direction is right half the time.
"""

import argparse
import re
from collections import defaultdict

from _record import provenance, write

from dual_distill import DistillationCollator, get_task, load_model, load_task
from dual_distill.trainer import predict_answers

NEIGHBOURS = ((0, -1), (0, 1), (-1, 0), (1, 0))


def main() -> None:
    """Answer, count, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (default: 0)")
    options = parser.parse_args()
    source = provenance()
    task = get_task("scenes")
    data = load_task("scenes", num_scenes={"test": 1_000}, seed=options.seed)["test"]
    data = data.filter(lambda kind: kind == "relation", input_columns="question_type", keep_in_memory=True)
    model, processor = load_model(options.checkpoint)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    answers = predict_answers(model, data, DistillationCollator(processor, task, names), batch_size=512)
    is_right = defaultdict(list)
    for row, answer in zip(data, answers, strict=True):
        kind = "next to" if "next to" in row["question"] else "direction"
        is_right[kind, num_answers(row["question"], row["objects"])].append(answer == row["answer"])
    results = [
        {
            "kind": kind,
            "different_answers_of_neighbours": number,
            "rows": len(rights),
            "accuracy": sum(rights) / len(rights),
        }
        for (kind, number), rights in sorted(is_right.items())
    ]
    for result in results:
        print(result)
    source["seed"] = options.seed
    write("scenes_direction", results, source)


def num_answers(question: str, objects: list[dict]) -> int:
    """Count the different answers that the neighbours of the named thing would give."""
    key = "colour" if "colour" in question else "shape"
    colour, shape = re.search(r"the (\w+) (\w+)(?: have)?\?$", question).groups()
    named = next(item for item in objects if (item["colour"], item["shape"]) == (colour, shape))
    cells = {(named["row"] + row, named["column"] + column) for row, column in NEIGHBOURS}
    return len({item[key] for item in objects if (item["row"], item["column"]) in cells})


if __name__ == "__main__":
    main()
