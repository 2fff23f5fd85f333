"""CascadeLLM: a cheap local model and a large one answer as one."""
