"""Jobs: one function, many arguments, results as they come; on this machine, on Slurm, or on a Ray cluster.

>>> from lipcomp.jobs._engines import run_jobs
>>> for outcome in run_jobs(measure, [(checkpoint,) for checkpoint in checkpoints]):  # doctest: +SKIP
...     print(outcome.number, outcome.error or outcome.value)

========  ==========================================================================================
engine    where a job runs
========  ==========================================================================================
local     in processes of this machine, one thread each (the default)
slurm     in a job array of the cluster, submitted from a machine with ``sbatch`` (extra ``slurm``)
ray       on the nodes of a Ray cluster, or of one started here for the time (extra ``ray``)
========  ==========================================================================================

The contract is the same everywhere. The function and its arguments are pickled and sent by value. A job that raises
becomes an :class:`Outcome` with a reason and the others go on; a job whose process was killed (out of memory, a lost
node) is repeated. Ctrl-C, or closing the generator, ends what runs. A job that writes its results whole can be
repeated at no risk, and two commands may work on one folder if each takes its part with :func:`lipcomp._claims.claim`.
"""

__all__: list[str] = []
