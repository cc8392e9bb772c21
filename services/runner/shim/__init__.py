"""The entry of every run's container: PID 1, which starts the script and writes down all that happens to it.

In the container it stands alone: it must never import more than the standard library of Python 3.10, and of that as
little as can be, since every start pays for it. Nor may it believe the script: what that prints, writes or forks is
bounded here, and the deadline holds without a runner.
"""
