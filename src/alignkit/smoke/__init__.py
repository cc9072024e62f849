"""A job tried on a tiny model: `tiny_job.py` makes the job small, `trial.py` trains, resumes, reloads and asks."""
