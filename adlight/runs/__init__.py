"""Run folders: the only room that knows a file name in one."""
