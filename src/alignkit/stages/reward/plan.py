"""What memory and how many steps a reward model takes."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from alignkit.jobs import RewardJob
from alignkit.models.reward import as_reward_model, every_score, score_head
from alignkit.models.skeleton import architecture_file, skeleton
from alignkit.planning.passes import model_inputs
from alignkit.planning.rehearsal import Batch, Models, Rehearsal
from alignkit.planning.unfilled import unfilled_base, with_adapter
from alignkit.stages.pair_plan import longest_pairs, steps_of_pairs
from alignkit.stages.planned import built_arguments
from alignkit.stages.reward.check import check_job
from alignkit.stages.reward.data import prepare
from alignkit.stages.sections import build_arguments


def rehearsal(job: RewardJob, *, processes: int) -> Rehearsal:
    """Read the pairs, and say how a step of training is taken."""
    check_job(job)
    prepared = prepare(job)
    config = skeleton(job.model).config
    build = partial(build_arguments, job, "reward", record={"train": job.train}, held_out=bool(prepared.data.evals))
    args = built_arguments(partial(build, max_length=None))

    def models() -> Models:
        base = unfilled_base(job.model, trains=not job.lora)  # an adapter is merged into it
        scored = as_reward_model(base, prepared.tokenizer, seed=job.seed)
        model = with_adapter(scored, job.model, job.lora, task_type="SEQ_CLS")
        return Models(model, score_head(model))

    def loss(models: Models, batch: Batch) -> Tensor:
        return every_score(models.trained, model_inputs(batch)).mean()

    return Rehearsal(
        stage="reward",
        args=args,
        architecture=architecture_file(job.model),
        model_type=config.model_type,
        build=models,
        batch=lambda size: longest_pairs(job, prepared, size, attention=config._attn_implementation),
        loss=loss,
        facts=steps_of_pairs(args, prepared, processes=processes),
    )
