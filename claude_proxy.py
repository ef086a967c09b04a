#!/usr/bin/env python3
"""The process that PM2 runs as `claude-proxy`: LiteLLM's proxy on a loopback address, for Claude Code only.

This script takes no arguments and starts the code in bundle/proxy/.

When the process is stopped, it closes the port at once, so that Claude Code's retry connects to the next process. Open
answers have 30 seconds to finish. Exit status: 0 stopped, 78 a mistake in the settings.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from bundle.bootstrap import EX_CONFIG, enter_venv

if __name__ == "__main__":
    enter_venv()

from bundle.errors import ConfigError, say
from bundle.network import make_readable
from bundle.proxy.live_config import live_config
from bundle.proxy.server import make_key, restore_patch, serve, take_port
from bundle.render import render_config
from bundle.settings import load_settings
from bundle.tokens import token_now


def main() -> int:
    argparse.ArgumentParser(description="The proxy. PM2 runs it as claude-proxy.").parse_args()
    try:
        live_config.settings = settings = load_settings()
        make_readable(os.environ, settings.base_url)  # LiteLLM reads the variables of a proxy when it is imported
        make_key(settings)
        if not settings.config_path.exists():
            # Fail here with the refresher's error, instead of waiting for a file that the refresher cannot write.
            render_config(settings, token_now(settings, time.time()))
        listener = take_port(settings)
        restore_patch()
        serve(settings, listener)
    except ConfigError as error:
        say(f"claude_proxy.py: {error}", sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:  # PM2 stops this process with SIGINT; uvicorn raises it again after the last answer
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
