"""From words on the command line to a typed job handed to its stage; the only room that knows Hydra."""

from alignkit.launch.compose import StepLayers, command_job, compose_job, job_of_record, step_job
from alignkit.launch.run import launch

__all__ = ["StepLayers", "command_job", "compose_job", "job_of_record", "launch", "step_job"]
