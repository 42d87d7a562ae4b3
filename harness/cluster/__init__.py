"""One run over several nodes: an agent for each node, started by torchrun, srun, mpirun or a Kubernetes Indexed Job.

The agent of rank 0 runs the command. Its workers are placed on all nodes in turn (`nodes.Nodes`); the agents of the
other ranks start them (`agent.Agent`). Messages go through torch.distributed's store, whose only importer is `store`.
docs/cluster.md describes the use.
"""
