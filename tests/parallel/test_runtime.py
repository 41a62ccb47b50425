"""Where a process learns which job it is one of; no process is started."""

import pytest

from vit_jax.errors import UserError
from vit_jax.parallel.runtime import Job, find_job

NAMED = {"JAX_COORDINATOR_ADDRESS": "head:8476", "JAX_NUM_PROCESSES": "4"}


def test_alone_it_is_in_no_job():
    assert find_job(environ={}) is None
    assert find_job("localhost:1234", 1, 0, environ={}) is None


def test_the_command_line_comes_first():
    assert find_job("node0:8476", 2, 1, NAMED | {"JAX_PROCESS_ID": "3"}) == Job(
        "command line", "node0:8476", 2, 1
    )


@pytest.mark.parametrize("name", ["JAX_PROCESS_ID", "JOB_COMPLETION_INDEX"])
def test_names_in_the_environment_are_those_of_jax_and_kubernetes(name):
    assert find_job(environ=NAMED | {name: "2"}) == Job("environment", "head:8476", 4, 2)


@pytest.mark.parametrize(
    ("environ", "how"),
    [
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NODELIST": "n[0-1]"}, "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1"}, "TPU"),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "t0"}, "TPU"),
    ],
)
def test_what_jax_finds_out_itself_is_left_to_it(environ, how):
    assert find_job(environ=environ) == Job(how)


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"},  # the batch script itself
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "n0"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://h:1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
    ids=str,
)
def test_a_single_task_is_no_job(environ):
    assert find_job(environ=environ) is None


@pytest.mark.parametrize(
    ("given", "environ", "says"),
    [
        (("h:1", None, None), {}, "--num_processes and --process_id missing"),
        ((None, 2, 0), {}, "--coordinator missing"),
        (("h:1", 2, 2), {}, "process 2 of 2 cannot be: .* from 0 to 1"),
        (("h:1", 2, -1), {}, "process -1 of 2 cannot be"),
        (("h:1", 0, 0), {}, "process 0 of 0 cannot be"),
        (("host", 2, 0), {}, "coordinator 'host' is no HOST:PORT"),
        (("h:99999", 2, 0), {}, "coordinator 'h:99999' is no HOST:PORT"),
        ((), {"OMPI_COMM_WORLD_SIZE": "2"}, "this Open MPI does not tell where"),
        ((), NAMED, "JAX_NUM_PROCESSES='4' with JAX_PROCESS_ID .* '': both are numbers"),
        ((), NAMED | {"JAX_PROCESS_ID": "7"}, "process 7 of 4 cannot be"),
    ],
)
def test_what_does_not_go_together_is_refused(given, environ, says):
    with pytest.raises(UserError, match=says):
        find_job(*given, environ=environ)
