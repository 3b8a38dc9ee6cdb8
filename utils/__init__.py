"""What both variants share: settings, sampling, the discrete step, evaluation, a run's folder."""
