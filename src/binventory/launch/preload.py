"""What the server that jobs are forked from imports, once for all. It computes nothing: threads don't fork."""

from __future__ import annotations

import gc

import binventory.launch.job_process
import binventory.launch.ranks
import binventory.tasks.evaluate
import binventory.tasks.predict
import binventory.tasks.prepare
import binventory.tasks.train  # noqa: F401

gc.collect()
gc.freeze()  # a job's collections, and its end, need not pass over what is here
