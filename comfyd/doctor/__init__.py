"""`comfyd doctor`: looks at the daemon, the files, the processes and the machine, and says what is wrong with them.

Works with and without a daemon. Owns: gathering; core.findings judges. Must not: change anything.
"""
