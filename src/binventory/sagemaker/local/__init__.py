"""SageMaker without Docker and without AWS: a control plane on loopback that runs jobs with the real toolkit."""
