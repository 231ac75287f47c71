"""Models with one to three things wrong, put through every command: what may come of it, and what may not.

seeds       small models that are right
mutations   what can be wrong: any field of the file, what a field means, the bytes
cases       a number -> a model, what was done to it, and a command; the same number gives the same case
checks      runs one case in this process, and says what should not have happened
server      a process that forks workers with limits, so that a crash or a hang is one case's, and named
runner      several servers at a time

One case again, with its files kept:  python -m fuzzing.cases NUMBER FOLDER [--models FOLDER]
"""
