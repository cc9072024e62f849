"""What memory and how many steps SFT takes."""

from __future__ import annotations

from functools import partial

from torch.nn.functional import pad

from alignkit.jobs import SftJob
from alignkit.models.skeleton import architecture_file, skeleton
from alignkit.models.source import ModelSource
from alignkit.planning.arguments import steps_of
from alignkit.planning.passes import has_plain_head, longest, sft_loss, with_places, without_idle
from alignkit.planning.rehearsal import Batch, Models, Rehearsal
from alignkit.planning.unfilled import unfilled_base, with_adapter
from alignkit.stages.planned import built_arguments
from alignkit.stages.sections import build_arguments
from alignkit.stages.sft.batches import build_collator, expected_layout
from alignkit.stages.sft.check import check_job
from alignkit.stages.sft.data import prepare
from alignkit.training.lm_head import lm_head


def rehearsal(job: SftJob, *, processes: int) -> Rehearsal:
    """Read the rows, and say how a step of training is taken."""
    check_job(job)
    prepared = prepare(job)
    config, train = skeleton(job.model).config, prepared.data.train
    skip = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}}
    build = partial(build_arguments, job, "sft", record={"train": job.train}, held_out=bool(prepared.data.evals))
    args = built_arguments(partial(build, **skip))
    collator = build_collator(prepared.tokenizer, expected_layout(job, prepared.attention), prepared.attention)
    is_plain = has_plain_head(config, trust_remote_code=job.model.trust_remote_code)

    def models() -> Models:
        trains = not (job.lora or ModelSource.of(job.model).is_adapter)
        model = with_adapter(unfilled_base(job.model, trains=trains), job.model, job.lora)
        return Models(model, lm_head(model))

    def batch(size: int) -> Batch:
        laid = collator([train.dataset[i] for i in longest(train.lengths, size)])
        labels_BL = pad(laid["labels"][:, 1:], (0, 1), value=-100)
        return with_places(without_idle({k: v for k, v in laid.items() if k != "row_index"}), labels_BL)

    return Rehearsal(
        stage="sft",
        args=args,
        architecture=architecture_file(job.model),
        model_type=config.model_type,
        build=models,
        batch=batch,
        loss=lambda models, batch: sft_loss(models.trained, batch, is_plain=is_plain),
        facts=steps_of(args, num_rows=len(train.dataset), num_tokens=sum(train.lengths), processes=processes),
    )
