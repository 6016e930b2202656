"""Work behind the main thread's: in order, bounded, and no error of either side is lost."""

import threading

import pytest

from stages.runtime.background_writer import background_writer


def test_jobs_run_in_order_in_one_other_thread_and_none_is_lost():
    done, threads = [], set()
    with background_writer(3) as submit:
        for number in range(200):
            submit(lambda n: (done.append(n), threads.add(threading.get_ident())), number)
    assert done == list(range(200)) and len(threads) == 1 and threading.get_ident() not in threads


def test_the_caller_waits_while_the_limit_is_reached():
    held, waiting = threading.Semaphore(0), []
    submitted = threading.Semaphore(0)

    def caller():
        with background_writer(2) as submit:
            for number in range(4):
                submit(held.acquire)
                waiting.append(number)
                submitted.release()

    thread = threading.Thread(target=caller)
    thread.start()
    assert submitted.acquire(timeout=10) and submitted.acquire(timeout=10)
    assert not submitted.acquire(timeout=0.2)  # the third waits for the first
    held.release()
    assert submitted.acquire(timeout=10)
    assert not submitted.acquire(timeout=0.2)
    held.release(3)
    thread.join(10)
    assert waiting == [0, 1, 2, 3] and not thread.is_alive()


def fail(error):
    raise error


def test_a_jobs_error_is_raised_by_a_later_submit_and_nothing_runs_after_it():
    done, failing = [], threading.Event()

    def failed():
        failing.wait(10)
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"), background_writer(2) as submit:
        submit(done.append, 0)
        submit(failed)
        submit(done.append, 1)  # waits in the queue behind the one that will fail
        failing.set()
        submit(done.append, 2)
        submit(done.append, 3)
        pytest.fail("submitted after an error")
    assert done == [0]


@pytest.mark.parametrize("error", [ValueError("late"), KeyboardInterrupt()])
def test_an_error_of_the_last_job_is_raised_at_the_end(error):
    with pytest.raises(type(error)), background_writer(2) as submit:
        submit(fail, error)


def test_the_first_of_several_errors_is_raised():
    with pytest.raises(ValueError, match="first"), background_writer(3) as submit:
        for text in ("first", "second", "third"):
            submit(fail, ValueError(text))


def test_after_the_callers_error_what_was_handed_over_is_done():
    done, begun, go_on = [], threading.Event(), threading.Event()

    def working():
        begun.set()
        go_on.wait(10)
        done.append("at work")

    def interrupt():
        begun.wait(10)
        threading.Timer(0.1, go_on.set).start()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), background_writer(3) as submit:
        submit(working)
        submit(done.append, "waiting")
        interrupt()
    assert done == ["at work", "waiting"]  # and waited for: whoever cleans up now is alone
