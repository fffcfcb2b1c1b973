"""RQ's class of jobs for the tests' workers."""

from jobs.workers import body
from tenure.jobs.rq import unit_job

UnitJob = unit_job(body.db)
