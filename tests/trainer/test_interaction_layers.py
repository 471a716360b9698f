"""A student with interaction layers is distilled like any other: terms fall, weights move, a resumed run is equal."""

import torch

from dual_distill.modeling import DualEncoderForQuestionAnswering


def student(make_teacher):
    torch.manual_seed(4)
    return DualEncoderForQuestionAnswering.from_fusion_encoder(make_teacher(seed=3), interaction_layers=1)


def test_it_trains_evaluates_and_resumes(build, make_teacher, make_rows):
    fields = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps", "optim": "adamw_torch", "learning_rate": 3e-3}
    rows = make_rows(20)
    trainer = build(student(make_teacher), make_teacher(), rows=rows, eval_rows=rows, **fields)
    before, start = trainer.evaluate(), {name: one.clone() for name, one in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_soft_label_loss"] < before["eval_soft_label_loss"]
    trained = trainer.model.state_dict()
    still = {name for name, one in trained.items() if torch.equal(one, start[name])}
    assert not any("interaction" in name for name in still), still

    again = build(student(make_teacher), make_teacher(), rows=rows, eval_rows=rows, **fields)
    again.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-3")
    for name, one in again.model.state_dict().items():
        assert torch.equal(one, trained[name]), name
