"""Answer AlpacaEval's instructions greedily with all runs of a setting, and have the oracle read the answers.

    python -m stages.mini.greedy --config results/mini_base/greedy/config.yaml

Training on preferences sharpens a model as a lower temperature would. At temperature 0 all models are equally sharp, so what a run gains
over SFT here it has learnt. In: the runs' models, which are of one shape, and the world. Out: greedy.json, {run: [the oracle's score of
each answer, in the order of the instructions]}. One vLLM engine swaps weights from run to run.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from omegaconf import OmegaConf

from stages.answer import Asked, answer_turns, longest
from stages.benchmarks.benchmark import OUTPUTS
from stages.lib import files, models
from stages.lib.engine import start_engine, swap_model
from stages.mini.oracle import load_oracle

NAME = "alpacaeval2"


def main() -> None:
    config, folder = files.stage_config(__doc__)
    oracle, questions = load_oracle(config.world), OUTPUTS.read_questions(config.benchmarks[NAME].questions)
    engine, scores = None, {}
    for run, model in config.runs.items():
        tokenizer = models.load_tokenizer(model)
        asked = [Asked(NAME, question, 0.0) for question in questions]
        if engine is None:
            engine = start_engine(OmegaConf.create({"model": model, "revision": None}), longest(tokenizer, asked, config))
        else:
            swap_model(engine, model)
        answer_turns(engine, tokenizer, asked, config)
        scores[run] = [oracle.score(one.question.prompts[0], one.turns[0].text) for one in asked]
        print(f"greedy: {config.setting} {run}, mean score {fmean(scores[run]):.3f}", flush=True)
    files.write_json(folder / "greedy.json", scores)
    made = [str(Path(model).parent / files.MANIFEST) for model in config.runs.values()]
    files.write_manifest(folder, config, inputs=[config.benchmarks[NAME].questions, *made], questions=len(questions))


if __name__ == "__main__":
    files.run(main)
