"""What a run is: from a config to a workdir, and from a workdir to a model that is evaluated, exported or talked to.

`setup` builds from a config what a run needs (`resolve`, `initial_params`), `identity` says what may not change within
a run, `compiled` makes its step and its evaluation, `loop` trains, `workdir` is what stays. `trained_model` opens what
stays, for `evaluator`, `convert` and `chat_model`; `adapter_model` opens PEFT folders over their base;
`training_record` is what an export says of its training. `conversation` is what `chat_model` gives, and `chat_commands`
what a person types into one. `run` and `dataset_face` are the classes that Python users see.
"""
