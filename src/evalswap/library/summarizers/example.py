# One row a dataset and metric, in the order of the config.
summarizer = dict(summary_groups=[])
