"""The playground: a page and endpoints over trained runs, on this machine.

What `app` imports at its top must not import torch: the page is answered while a thread loads torch and the weights.
"""
