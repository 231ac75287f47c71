"""The file that `convrewrite init` writes: everything that it may say, with what it means."""

STARTER = """\
# What `convrewrite run` does. Paths are relative to this file; every key but `models` and `steps` may be left out.

models = ["models/*.onnx"]            # globs; ** goes through folders
output = "optimized/{name}.onnx"      # {name} without .onnx, {folder} of the model
# jobs = 2                            # processes at a time; by default one per core, or one where something is timed
# timeout = 3600                      # seconds for one model, all steps taken together; then it is ended (exit code 2)
# allow_refused = true                # let a model that cannot be rewritten as asked pass (exit code 0, not 3)
# lock = "convrewrite.lock"           # what was done, and timings that decided it: keep it under version control

# Steps run one after another; their keys are the options of the commands.
[[steps]]
pass = "groups"
tol = 0.0

[[steps]]
pass = "separable"
tol = 1e-4                            # relative error of each kernel
accept = "smaller"                    # "faster" times each layer first
# form = "auto"                       # spatial, depthwise, channel, tucker
# max_output_error = 1e-3             # rewrite only as many layers as stay within it
# only = ["conv1*"]                   # globs on node and tensor names; skip = [...] likewise

# [[steps]]
# pass = "fcn"                        # any image size
# window = [224, 224]                 # where the file leaves it open
# stride = [4]                        # pixels between cells; [1] is dense
# upsample = "bilinear"               # a cell for every pixel

[verification]
# data = "calibration/{name}.npz"     # real inputs: one array per input, axis 0 is samples
samples = 3
seed = 0
provider = "auto"                     # cpu, cuda, tensorrt
# size = [224, 224]                   # where the input is open

# Every model has to pass these, all steps taken together; one that does not is not written (exit code 1).
[gates]
equivalence = "approximate"           # "reassociated": rounding only; "exact": not even that
max_output_error = 1e-3               # max|a-b| / max|b| of every output
# min_top1_agreement = 0.99
# max_bytes = 50_000_000
# min_speedup = 1.05                  # measured on this machine, against the original

# With a baseline: how much worse than there a model may become, as a share of what it was (exit code 1).
[baseline]
max_more_macs = 0.01
max_more_parameters = 0.01
max_more_bytes = 0.01
max_slowdown = 0.05                   # where min_speedup has both timed, on one device
max_more_error = 0.1
max_less_agreement = 0.005            # of 1: samples with the original's class

[reports]
json = "convrewrite-report.json"
# junit = "convrewrite-junit.xml"
# markdown = "convrewrite-report.md"  # also on the page of a GitHub job
html = "convrewrite-report.html"      # for people: costs, spectra, sites, errors and speed in one file
"""
