"""Start LMDeploy's server. Run by the Python that has LMDeploy; needs nothing of evalswap.

Two things that its own command does not do: torch is imported first, or TurboMind's libraries are not found;
and a model that TurboMind does not run is an error, where the command would change to the other backend.
"""

import sys

import torch  # noqa: F401  before lmdeploy


def main() -> None:
    from lmdeploy.archs import autoget_backend
    from lmdeploy.cli.entrypoint import run

    model, arguments = sys.argv[1], sys.argv[2:]
    wanted = arguments[arguments.index("--backend") + 1]
    trust = "--trust-remote-code" in arguments
    if wanted == "turbomind" and autoget_backend(model, trust_remote_code=trust) != wanted:
        sys.exit("ERROR: TurboMind does not run this model")
    sys.argv = ["lmdeploy", "serve", "api_server", *sys.argv[1:]]
    run()


if __name__ == "__main__":
    main()
