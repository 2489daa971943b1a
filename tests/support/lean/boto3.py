"""Stands in for boto3 in the processes that tests start: absent, as it is for users.

It is installed for moto, the S3 server of tests; securesystemslib imports it where it finds it, which was a quarter of
the time that a command takes to start.
"""

raise ImportError("tests run egm without boto3")
