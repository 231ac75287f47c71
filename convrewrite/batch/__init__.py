"""`convrewrite run`: several models through the same steps, held against gates; the step of a CI.

convrewrite.toml ──> settings ──> jobs, one per model ──> worker processes ──> results ──> summary, exit code
                                    |                        steps, one after another; gates; then the output
                                  unchanged since the last run: left alone

settings   what the file may say, with a line for each mistake
jobs       which models there are, where each goes, and whether it has changed
work       what is done for one model, in a process of its own (`worker`)
pool       several such processes at a time; one that dies is that model's failure
baseline   what models were like at a commit (`repository`) or in a file; `changes` says which got worse
summary    the results as JSON, JUnit XML and Markdown
"""
