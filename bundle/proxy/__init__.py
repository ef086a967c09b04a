"""The proxy: LiteLLM in this process, with the front door, the current token and the adaptations for Cortex."""
